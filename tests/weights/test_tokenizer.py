"""Chat templates: rendered as transformers renders them, and confined to the sandbox."""

import io
import json
import pickle
import shutil
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import weights
import zoo
from tests.weights.checkpoints import read, write
from weights.generate import app
from weights.tokenizer import Text, chat_prompt, encode
from zoo.cli import runner
from zoo.errors import MalformedError, NotAvailable
from zoo.model.sampling import GenerationConfig

Saved = Callable[[str], Path]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
# Features that published templates use, one per template.
TEMPLATES = {
    "a loop": (
        "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m.content | trim }}{{ eos_token }}{% endfor %}"
    ),
    "a turn of the model": "{{ messages[0].content }}{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "blocks on lines": (
        "{% for m in messages %}\n    {% if m.role == 'user' %}\n<u>{{ m.content }}\n    {% endif %}\n{% endfor %}\n"
    ),
    "a namespace": (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}"
    ),
    "loop controls": (
        "{% for m in messages %}{% if m.role == 'x' %}{% continue %}{% endif %}{{ m.content }}{% break %}{% endfor %}"
    ),
    "json": "{{ messages | tojson }} {{ {'b': '<é>', 'a': 1} | tojson(indent=2, sort_keys=true) }}",
    "macros and slices": "{% macro say(x) %}<{{ x }}>{% endmacro %}{{ say(messages[-1:][0]['content'][::-1]) }}",
    "generation": (
        "{% for m in messages %}{% generation %}{{ m.content }}{% set x = 1 %}{% endgeneration %}{% endfor %}{{ x }}"
    ),
    "what is not given": (
        "{% if tools %}tools{% endif %}{% if tools is defined and tools is not none %}!{% endif %}{{ nothing }}."
    ),
    "a dict": (
        "{% set d = dict(a=1) %}{{ d['a'] }}{{ d.get('b', 2) }}{% for k, v in d.items() %}{{ k }}{{ v }}{% endfor %}"
    ),
    "a test of kinds": (
        "{{ 'text' if messages[0].content is string else 'parts' }}"
        "{{ strftime_now('%Y') | length }}{{ range(3) | list }}"
    ),
}
# Forbidden actions of a template: each is an error.
HOSTILE = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "classes, by a filter": "{{ (messages | attr('__class__')).__mro__ }}",
    "globals of a function": "{{ raise_exception.__globals__['__builtins__']['open']('/etc/passwd') }}",
    "globals of the namespace": "{{ namespace.__init__.__globals__ }}",
    "a method's function": "{{ messages.append.__self__.__class__() }}{{ strftime_now.__code__.co_code }}",
    "a format string": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "a format map": "{{ '{x.__class__.__mro__}'.format_map({'x': messages}) }}",
    "the cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "lipsum": "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "self": "{{ self.__init__.__globals__ }}{{ self._TemplateReference__context.environment() }}",
    "an import": "{% import 'os' as os %}{{ os.system('id') }}",
    "an include": "{% include '/etc/passwd' %}",
    "another template": "{% extends '/etc/passwd' %}",
    "changing the messages": "{{ messages.append(1) }}",
    "changing a message": "{{ messages[0].update(content=1) }}",
    "a name with an underscore": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "a name with an underscore, at once": "{{ namespace(__class__=1) }}",
    "a long range": "{% for i in range(10**9) %}{% endfor %}",
    "its own refusal": "{{ raise_exception('only one turn\x1b[2J\nand more') }}",
    "bad syntax": "{% for %}",
    "an endless recursion": "{% macro x() %}{{ x() }}{% endmacro %}{{ x() }}",
}


def reference(template: str, message: str, **special: str) -> str:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({}, unk_token="?")), **special)
    messages = [{"role": "user", "content": message}]
    return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True)


def settings(folder: Path, **said: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(said), encoding="utf-8")


@pytest.mark.parametrize("name", TEMPLATES)
def test_as_the_reference_renders_it(name: str, tmp_path: Path) -> None:
    message = ' Say <b>é</b> & "that"\n {{ 7 * 7 }} '
    settings(tmp_path, **SPECIAL, chat_template=TEMPLATES[name])
    assert chat_prompt(tmp_path, message) == reference(TEMPLATES[name], message, **SPECIAL)


@pytest.mark.parametrize("name", HOSTILE)
def test_templates_that_leave_the_sandbox_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(HOSTILE[name], encoding="utf-8")
    with pytest.raises(MalformedError, match=r"chat_template\.jinja: the chat template fails: ") as caught:
        chat_prompt(tmp_path, "hello")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_the_three_places_of_a_template(tmp_path: Path) -> None:
    """The newest place is used; special tokens may be objects."""
    with pytest.raises(NotAvailable, match="has no chat template; continue the prompt as it is, without --chat"):
        chat_prompt(tmp_path, "hi")
    several = [{"name": "rag", "template": "rag"}, {"name": "default", "template": "default {{ bos_token }}"}]
    settings(tmp_path, chat_template=several, bos_token={"content": "<s>", "lstrip": False})
    assert chat_prompt(tmp_path, "hi") == "default <s>"
    (tmp_path / "chat_template.json").write_text('{"chat_template": "older {{ bos_token }}"}', encoding="utf-8")
    assert chat_prompt(tmp_path, "hi") == "older <s>"
    (tmp_path / "chat_template.jinja").write_text("newest {{ bos_token }}{{ messages[0].content }}", encoding="utf-8")
    assert chat_prompt(tmp_path, "hi") == "newest <s>hi"


@pytest.mark.parametrize(
    ("name", "content", "phrase"),
    [
        ("tokenizer_config.json", b'{"chat_template": 7}', "chat_template must be text, got a int"),
        ("tokenizer_config.json", b"[]", "holds a list, not an object"),
        ("tokenizer_config.json", b" " * 8_000_001, "above the 8000000"),
        ("chat_template.json", b"{", "is not JSON"),
        ("chat_template.jinja", b" " * 1_000_001, "is above the 1000000 bytes"),
    ],
)
def test_broken_files(name: str, content: bytes, phrase: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MalformedError) as caught:
        chat_prompt(tmp_path, "hi")
    assert name in str(caught.value)
    assert phrase in str(caught.value)


def test_a_template_from_outside_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside").write_text("secret", encoding="utf-8")
    (folder / "chat_template.jinja").symlink_to(tmp_path / "outside")
    with pytest.raises(MalformedError, match="is a link that leads out of its folder"):
        chat_prompt(folder, "hi")


@pytest.fixture
def folder(saved: Saved, tmp_path: Path) -> Path:
    """A toy model whose tokenizer puts <s> before every text that is not a chat."""
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, **{f"w{i}": i for i in range(1, 512)}}, unk_token="w511"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $0", special_tokens=[("<s>", 0)])
    folder = write(tmp_path / "model", *read(saved("qwen3-0.6b")))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings(folder, bos_token="<s>", chat_template="{{ bos_token }} w7 {{ messages[0].content }} w8")
    return folder


def generate(folder: Path, capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = runner.exit_code(app, "python -m weights.generate", [str(folder), *args, "--max-new-tokens", "4"])
    return code, *capsys.readouterr()


def test_a_chat_has_its_special_tokens_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, ids, _ = generate(folder, capsys, "--tokens", "0,7,5,6,8")
    assert code == 0
    words = " ".join(f"w{token}" for token in map(int, ids.split(",")) if token)
    code, answer, err = generate(folder, capsys, "w5 w6", "--chat")
    assert (code, answer.split()) == (0, words.split())
    assert "prompt of 5 tokens" in err
    assert "prompt of 3 tokens" in generate(folder, capsys, "w5 w6")[2]


def test_a_prompt_from_stdin(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The trailing newline is removed."""
    given: list[str] = []
    monkeypatch.setattr("weights.tokenizer.chat_prompt", lambda folder, text: given.append(text) or text)
    monkeypatch.setattr(sys, "stdin", io.StringIO("w5\nw6\n\n"))
    expected = generate(folder, capsys, "w5 w6")[:2]
    assert generate(folder, capsys, "-", "--chat")[0] == 0
    assert given == ["w5\nw6\n"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("w5\nw6\n"))
    assert generate(folder, capsys, "-")[:2] == expected


def test_usage(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = generate(folder, capsys, "--tokens", "1", "--chat")
    assert (code, err) == (2, "error: --chat is for a PROMPT in words\n")
    settings(folder, chat_template="{{ ''.__class__.__mro__ }}")
    code, out, err = generate(folder, capsys, "w5", "--chat")
    assert (code, out, len(err.splitlines())) == (4, "", 1)
    assert "the chat template fails: SecurityError: " in err
    (folder / "tokenizer_config.json").unlink()
    code, _, err = generate(folder, capsys, "w5", "--chat")
    assert code == 3
    assert "has no chat template" in err
    monkeypatch.setitem(sys.modules, "jinja2", None)
    code, _, err = generate(folder, capsys, "w5", "--chat")
    assert code == 3
    assert "pip install -e '.[text]'" in err


def test_the_chat_template_of_a_gguf_file(tmp_path: Path) -> None:
    """It gets the texts of the special tokens that the file names by id, and is saved in the form that folders have."""
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", "a"])
    writer.add_token_scores([0.0] * 4)
    writer.add_token_types([2, 3, 3, 1])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    with pytest.raises(NotAvailable, match=r"x\.gguf has no chat template"):
        chat_prompt(closed(writer, path), "hi")
    writer = gguf.GGUFWriter(path, "gemma3")
    for add, value in (
        (writer.add_tokenizer_model, "llama"),
        (writer.add_token_list, ["<unk>", "<s>", "</s>", "a"]),
        (writer.add_token_scores, [0.0] * 4),
        (writer.add_bos_token_id, 1),
        (writer.add_eos_token_id, 2),
        (writer.add_chat_template, TEMPLATES["a loop"]),
    ):
        add(value)
    closed(writer, path)
    assert chat_prompt(path, " hi ") == reference(TEMPLATES["a loop"], " hi ", **SPECIAL) == "<s>[user] hi</s>"
    Text(path).save(tmp_path)
    assert chat_prompt(tmp_path, " hi ") == "<s>[user] hi</s>"
    assert encode(tmp_path, "a", chat=False)[1] == encode(path, "a", chat=False)[1]


def closed(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_a_gguf_file_without_a_tokenizer(tmp_path: Path) -> None:
    for kind in (None, "none", "no_vocab"):
        writer = gguf.GGUFWriter(tmp_path / "x.gguf", "gemma3")
        if kind:
            writer.add_tokenizer_model(kind)
        path = closed(writer, tmp_path / "x.gguf")
        assert Text(path).tokenizer() is None
        with pytest.raises(NotAvailable, match=r"x\.gguf holds no tokenizer to read a prompt with; give ids"):
            encode(path, "hi", chat=False)


def test_a_model_opens_its_tokenizer_when_it_is_asked_for(folder: Path, tmp_path: Path) -> None:
    """It is opened only once, even after a copy. A saved model keeps it, with the chat template and the settings of
    generation."""
    settings_of = {"eos_token_id": [3, 4], "do_sample": True, "temperature": 0.6, "top_k": 20}
    (folder / "generation_config.json").write_text(json.dumps(settings_of), encoding="utf-8")
    model = weights.load(folder)
    assert model.generation == GenerationConfig((3, 4), 0.6, 20)
    copied = pickle.loads(pickle.dumps(deepcopy(model)))
    for each in (model, copied):
        assert each.tokenizer is each.tokenizer
        assert each.tokenizer.encode("w5 w6").ids == [0, 5, 6]
    saved_in = {layout: tmp_path / layout for layout in ("hf", "zoo")}
    for layout, target in saved_in.items():
        weights.save(model, target, layout=layout)
        again = weights.load(target)
        assert again.generation == model.generation
        assert again.tokenizer.to_str() == model.tokenizer.to_str()
        assert chat_prompt(target, "w5") == chat_prompt(folder, "w5")
    model.generation = replace(model.generation, stop=(9,))
    weights.save(model, tmp_path / "changed")
    assert weights.load(tmp_path / "changed").generation.stop == (9,)


def test_a_model_without_a_tokenizer(saved: Saved, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fresh = zoo.build("qwen3", tiny=True)
    assert fresh.tokenizer is None
    weights.save(fresh, tmp_path / "fresh")
    assert sorted(path.name for path in (tmp_path / "fresh").iterdir()) == ["config.json", "model.safetensors"]
    assert weights.load(tmp_path / "fresh").tokenizer is None
    folder = write(tmp_path / "gone", *read(saved("qwen3-0.6b")))
    model = weights.load(folder)
    shutil.rmtree(folder)
    with caplog.at_level("WARNING", "weights"):
        weights.save(model, tmp_path / "kept")
    assert [each.message for each in caplog.records if each.levelname == "WARNING"] == [
        f"saved without a tokenizer: {folder} is gone"
    ]
