"""One function finds a model by every kind of word, with one precedence."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import weights
import zoo
from tests.ranks import in_process
from tests.weights.hub import Hub, serve
from weights.specs import find_spec
from zoo.catalog import sizes
from zoo.cli.runner import import_modules
from zoo.errors import MalformedError, NotAvailable, UsageError
from zoo.spec_files import as_json

TOY = zoo.spec("qwen3", tiny=True)
WINDOWED = zoo.swap(TOY, zoo.RMSNorm, zoo.RMSNorm(1e-3))
OWN = """
from dataclasses import dataclass
import zoo

@dataclass(frozen=True)
class Halved(zoo.SwiGLU):
    '''A block of one's own.'''

MODEL = zoo.swap(zoo.spec("qwen3", tiny=True), zoo.SwiGLU, Halved())

def model():
    return MODEL

def broken():
    return 1 / 0

NUMBER = 3
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory; modules and kinds that a test adds are gone afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(zoo.Spec, "kinds", dict(zoo.Spec.kinds))
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def save(name: str, layout: str) -> Path:
    weights.save(zoo.build(TOY), name, layout=layout)  # type: ignore[arg-type]
    return Path(name)


def test_known_names() -> None:
    for word in ("gpt-oss-20b", "gpt-oss", "GPT_OSS", "openai/gpt-oss-20b"):
        found = find_spec(word)
        assert (found.preset, found.name, found.spec) == ("gpt-oss-20b", "gpt-oss-20b", sizes()["gpt-oss-20b"].spec)
    with pytest.raises(UsageError, match="unknown model 'gpt-os'; did you mean"):
        find_spec("gpt-os")


@pytest.mark.parametrize("layout", ["hf", "zoo"])
def test_folders_and_their_files(layout: str) -> None:
    folder = save("mine", layout)
    file = folder / ("config.json" if layout == "hf" else "spec.json")
    for word in ("mine", "./mine", str(folder.absolute()), str(file)):
        found = find_spec(word)
        assert (found.name, found.spec, found.preset) == ("mine", TOY, None)
        assert (found.config is not None) == (layout == "hf")
    run = Path("run")
    run.mkdir()
    folder.rename(run / "model")
    assert find_spec("run").spec == TOY


def test_words_that_nearly_name_a_model() -> None:
    Path("mine.py").write_text("import zoo\nlarge = zoo.spec('qwen3')\n")
    for word, error, message in (
        ("mine.py", UsageError, r"mine\.py is a Python file: write mine\.py:NAME"),
        ("mine.py:larg", UsageError, r"mine\.py has no Decoder 'larg'.*; did you mean large\?"),
        ("absent/", NotAvailable, "there is no folder and no file absent/"),
        ("", UsageError, "a model's name is empty"),
    ):
        with pytest.raises(error, match=message):
            find_spec(word)
    Path("leaves.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(UsageError, match=r"leaves\.py:1: SystemExit: 3"):
        find_spec("leaves.py:x")


def test_a_run_without_a_saved_model() -> None:
    state = Path("run/checkpoints/step-00000001/state.json")
    state.parent.mkdir(parents=True)
    state.write_text(json.dumps({"schema_version": 1, "step": 1, "spec": as_json(TOY)}))
    assert (find_spec("run").name, find_spec("run").spec) == ("run", TOY)


def test_a_spec_file_of_another_name() -> None:
    (save("mine", "zoo") / "spec.json").rename("small.json")
    assert (find_spec("small.json").name, find_spec("small.json").spec) == ("small", TOY)


def test_a_known_name_precedes_a_folder_and_a_path_precedes_it() -> None:
    save("qwen3", "hf")
    save("qwen3-8b", "zoo")
    assert find_spec("qwen3").preset == "qwen3-0.6b"
    assert find_spec("./qwen3").spec == TOY
    assert (find_spec("./qwen3-8b").name, find_spec("./qwen3-8b").spec) == ("./qwen3-8b", TOY)
    Path("Qwen").mkdir()
    save("Qwen/Qwen3-0.6B", "zoo")
    assert find_spec("Qwen/Qwen3-0.6B").spec == TOY  # as a repository that was cloned here
    assert find_spec("Qwen/Qwen3-8B").preset == "qwen3-8b"


def test_what_a_path_lacks() -> None:
    with pytest.raises(NotAvailable, match=r"there is no folder and no file \./absent"):
        find_spec("./absent")
    Path("empty").mkdir()
    with pytest.raises(NotAvailable, match=r"empty: there is no config\.json and no spec\.json"):
        find_spec("empty")
    Path("notes.txt").touch()
    with pytest.raises(UsageError, match=r"notes\.txt is not a config\.json, spec\.json or \.gguf file"):
        find_spec("notes.txt")
    folder = save("mine", "hf")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"strange_field": 1}))
    with pytest.raises(MalformedError, match=r"^mine/config\.json: .*strange_field"):
        find_spec("mine")
    assert find_spec("mine", ["strange_field"]).spec == TOY


def test_a_python_file() -> None:
    Path("own.py").write_text(OWN)
    value, function = find_spec("own.py:MODEL"), find_spec("own.py:model")
    assert value.spec == function.spec == zoo.swap(TOY, zoo.SwiGLU, zoo.Spec.kinds["Halved"]())
    assert (value.name, function.name, value.path) == ("MODEL", "model", Path("own.py"))
    with pytest.raises(UsageError, match=r"own\.py:15: ZeroDivisionError: division by zero"):
        find_spec("own.py:broken")
    for name in ("NUMBER", "absent"):
        with pytest.raises(UsageError, match=f"own.py has no Decoder '{name}', and no function of that name"):
            find_spec(f"own.py:{name}")
    with pytest.raises(NotAvailable, match=r"there is no file other\.py"):
        find_spec("other.py:MODEL")
    Path("wrong.py").write_text("import zoo\nzoo.nothing\n")
    with pytest.raises(UsageError, match=r"wrong\.py:2: AttributeError: .*nothing"):
        find_spec("wrong.py:MODEL")
    Path("json.py").touch()
    with pytest.raises(UsageError, match=r"json\.py: a module 'json' is already loaded; rename the file"):
        find_spec("json.py:MODEL")


def test_blocks_of_ones_own_are_imported_first() -> None:
    Path("own_blocks.py").write_text(OWN)
    weights.save(zoo.build(find_spec("own_blocks.py:MODEL").spec), "mine")
    del sys.modules["own_blocks"], zoo.Spec.kinds["Halved"]
    sys.path.remove(str(Path.cwd()))
    with pytest.raises(NotAvailable, match=r"no block 'Halved' is defined; import own_blocks first, or --import it"):
        weights.load("mine")
    import_modules(["own_blocks"])
    assert type(weights.load("mine").spec.layers[0].ffn.block.act).__name__ == "Halved"
    with pytest.raises(NotAvailable, match="--import no_such: there is no module 'no_such'"):
        import_modules(["no_such"])
    with pytest.raises(NotAvailable, match=r"no module 'own_blocks.py'; write --import own_blocks$"):
        import_modules(["own_blocks.py"])
    Path("fails.py").write_text("1 / 0\n")
    with pytest.raises(UsageError, match="--import fails: ZeroDivisionError: division by zero"):
        import_modules(["fails"])


def test_a_repository_on_the_hub(tmp_path: Path) -> None:
    """Only its config is downloaded; afterwards it is read from the download cache."""
    folder = save("mine", "hf")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    environment = {"HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    with serve(Hub({"someone/model": files})) as hub:
        online = environment | {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0"}
        assert in_process(described, "someone/model", environment=online) == ("model", TOY)
        assert hub.fetched("someone/model") == {"config.json"}
    offline = environment | {"HF_HUB_OFFLINE": "1"}
    assert in_process(described, "someone/model", environment=offline) == ("model", TOY)
    name, reason = in_process(described, "someone/else", environment=offline)
    assert name == "NotAvailable"
    assert "someone/else: " in reason
    assert "not in the download cache" in reason


def described(word: str) -> tuple[str, object]:
    """The name and the spec of a model, or the error."""
    try:
        found = find_spec(word)
        return found.name, found.spec
    except NotAvailable as error:
        return "NotAvailable", str(error)
