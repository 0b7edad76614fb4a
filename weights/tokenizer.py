"""A source's tokenizer and chat template: converts a text or a user's message to token ids, and token ids to text.

They are read from a folder, a tokenizer.json or a .gguf file. A chat template is untrusted code. It runs in jinja2's
sandbox, which gives it only the values passed here: no files, no modules, no attributes that begin with an underscore.
Its running time and the length of its output are not limited.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from shutil import copyfile
from typing import Any

from weights.formats.gguf_tokenizer import NO_TOKENIZER, gguf_tokenizer
from weights.formats.untrusted import CONFIG_LIMIT, MB, member, read_json
from zoo.errors import MalformedError, NotAvailable, UsageError, ZooError, require_package

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
TEMPLATE, OLDER_TEMPLATE = "chat_template.jinja", "chat_template.json"
TEXT_FILES = (TOKENIZER, TOKENIZER_CONFIG, TEMPLATE, OLDER_TEMPLATE)
TOKENIZER_CONFIG_LIMIT = 8 * MB  # it can hold thousands of added tokens
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
GGUF, GGUF_TEMPLATE = ".gguf", "tokenizer.chat_template"
GGUF_SPECIAL = dict(zip(SPECIAL_TOKENS, ("bos", "eos", "unknown", "padding"), strict=True))
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Text:
    """The tokenizer and the chat template at a path, read on demand."""

    path: Path

    def tokenizer(self) -> Any:
        """Returns the tokenizer as an object of the library `tokenizers`, or None if the path has no tokenizer."""
        return read_tokenizer(self.path) if has_tokenizer(self.path) else None

    def save(self, folder: Path) -> None:
        """Copies the tokenizer's and template's files to a folder, or writes them from a .gguf file. Logs a warning if
        this fails."""
        try:
            if self.path.suffix == GGUF:
                self._save_gguf(folder)
            elif not self.path.is_dir():
                raise NotAvailable(f"{self.path} is gone")
            for name in TEXT_FILES:
                if (self.path / name).exists():
                    copyfile(member(self.path, name), folder / name)
        except (ZooError, OSError) as error:
            log.warning("saved without a tokenizer: %s", error)

    def _save_gguf(self, folder: Path) -> None:
        fields = _gguf_fields(self.path)
        if (tokenizer := self.tokenizer()) is None:
            return
        (folder / TOKENIZER).write_text(tokenizer.to_str(), encoding="utf-8")
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **_gguf_special(fields, tokenizer.id_to_token)}
        (folder / TOKENIZER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if isinstance(template := fields.get(GGUF_TEMPLATE), str):
            (folder / TEMPLATE).write_text(template, encoding="utf-8")


def has_tokenizer(path: Path) -> bool:
    """Whether there is a tokenizer at a path, supported or not."""
    if path.suffix == GGUF:
        return _gguf_fields(path).get("tokenizer.ggml.model") not in NO_TOKENIZER
    return path.is_file() or (path / TOKENIZER).is_file()


def read_tokenizer(path: Path) -> Any:
    """Returns the tokenizer of a .gguf file, a folder or a tokenizer.json, read by the library `tokenizers`. Raises
    NotAvailable if there is no tokenizer or its kind is not supported."""
    if path.suffix == GGUF:
        from weights.formats.gguf_file import LongList  # here, since it needs an optional package

        fields = _gguf_fields(path)

        def read_list(name: str) -> list[Any]:
            found = fields.get(name) or []
            return found.read() if isinstance(found, LongList) else found

        return gguf_tokenizer(fields, read_list, str(path))
    path = path if path.is_file() else member(path, TOKENIZER)
    tokenizers = require_package("tokenizers", "text")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no error types of its own
        raise MalformedError(f"{path} is not a readable tokenizer: {error}") from error


def encode(path: Path, text: str, chat: bool) -> tuple[Any, list[int]]:
    """Returns the tokenizer at a path, and the text's token ids. Special tokens come from the chat template with
    `chat`, otherwise from the tokenizer. Raises NotAvailable if there is no tokenizer, UsageError for invalid
    Unicode."""
    if not has_tokenizer(path):
        none = "holds no tokenizer" if path.suffix == GGUF else f"has no {TOKENIZER}"
        raise NotAvailable(f"{path} {none} to read a prompt with; give ids (--tokens 2,818,5279) or --tokenizer SOURCE")
    tokenizer = read_tokenizer(path)
    text = chat_prompt(path, text) if chat else text
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the prompt is not valid UTF-8: {error.reason} at {error.start}") from error
    return tokenizer, list(tokenizer.encode(text, add_special_tokens=not chat).ids)


def decoder(tokenizer: Any, prompt: list[int]) -> Callable[[int], str]:
    """Returns a function that converts each new token to text. A token that ends within a character gives ""."""
    stream = require_package("tokenizers.decoders", "text").DecodeStream(ids=prompt, skip_special_tokens=True)
    return lambda token: stream.step(tokenizer, token) or ""


def chat_prompt(path: Path, message: str) -> str:
    """Returns the text of a chat in which the user has sent `message` and the model answers next. Raises NotAvailable
    if there is no chat template, MalformedError if the template fails."""
    require_package("jinja2", "text")
    template, where, special = _gguf_template(path) if path.suffix == GGUF else _folder_template(path)
    given: dict[str, Any] = dict(special)
    given |= {"messages": [{"role": "user", "content": message}], "add_generation_prompt": True}
    try:
        return _environment().from_string(template).render(**given, tools=None, documents=None)
    except Exception as error:  # of any type, since a template can raise any
        line = next(iter(str(error).splitlines()), "")[:300]
        line = line if line.isprintable() else ascii(line)
        raise MalformedError(f"{where}: the chat template fails: {type(error).__name__}: {line}") from error


def _folder_template(path: Path) -> tuple[str, Path, dict[str, str]]:
    """Returns the template's text, its file, and the special tokens. `path` is a folder, or a tokenizer.json in it."""
    folder = path.parent if path.is_file() else path
    has_config = (folder / TOKENIZER_CONFIG).exists()
    config = read_json(member(folder, TOKENIZER_CONFIG), TOKENIZER_CONFIG_LIMIT) if has_config else {}
    special = {name: config.get(name) for name in SPECIAL_TOKENS}
    # A special token is its text, or an object that holds it as "content".
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in special.items()}
    return *_template(folder, config), {name: text for name, text in texts.items() if isinstance(text, str)}


def _gguf_template(path: Path) -> tuple[str, Path, dict[str, str]]:
    """Returns the template's text, its file, and the special tokens, of a .gguf file."""
    fields = _gguf_fields(path)
    template = fields.get(GGUF_TEMPLATE)
    if not isinstance(template, str):
        raise NotAvailable(f"{path} has no chat template; continue the prompt as it is, without --chat")
    return template, path, _gguf_special(fields, read_tokenizer(path).id_to_token)


def _gguf_special(fields: Mapping[str, Any], text_of: Callable[[int], str | None]) -> dict[str, str]:
    """Returns the texts of the special tokens that a .gguf file names by id."""
    ids = {name: fields.get(f"tokenizer.ggml.{key}_token_id") for name, key in GGUF_SPECIAL.items()}
    texts = {name: text_of(each) for name, each in ids.items() if isinstance(each, int)}
    return {name: text for name, text in texts.items() if text is not None}


def _gguf_fields(path: Path) -> dict[str, Any]:
    require_package("gguf", "gguf")
    from weights.formats.gguf_file import read_gguf  # here, since it needs an optional package

    return read_gguf(path)[0]


def _template(folder: Path, config: dict[str, Any]) -> tuple[str, Path]:
    """Returns the template's text and its file. Of the three possible files, the one in the newest format is used."""
    if (path := folder / TEMPLATE).exists():
        with member(folder, TEMPLATE).open("rb") as file:
            data = file.read(CONFIG_LIMIT + 1)
        if len(data) > CONFIG_LIMIT:
            raise MalformedError(f"{path} is above the {CONFIG_LIMIT} bytes that such a file can need")
        return data.decode(errors="replace"), path
    path = folder / TOKENIZER_CONFIG
    if (folder / OLDER_TEMPLATE).exists():
        path = folder / OLDER_TEMPLATE
        config = read_json(member(folder, OLDER_TEMPLATE), CONFIG_LIMIT)
    template = config.get("chat_template")
    if isinstance(template, list):  # several templates, by name
        named = [each for each in template if isinstance(each, dict) and each.get("name") == "default"]
        template = named[0].get("template") if named else None
    if template is None:
        raise NotAvailable(f"{folder} has no chat template; continue the prompt as it is, without --chat")
    if not isinstance(template, str):
        raise MalformedError(f"{path}: chat_template must be text, got a {type(template).__name__}")
    return template, path


def _environment() -> Any:
    """Returns jinja2 with the functions that transformers gives to published templates, and no others."""
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """{% generation %} marks the text a model is trained on. Here it has no effect."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)

    class Guarded(Namespace):
        """jinja2's namespace, without names that begin with an underscore."""

        def __init__(self, /, *pairs: Any, **values: Any) -> None:
            super().__init__()
            for name, value in dict(*pairs, **values).items():
                self[name] = value

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise SecurityError(f"a namespace must not hold {name!r}")
            super().__setitem__(name, value)

    def fail(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.globals = {
        "range": environment.globals["range"],  # the sandbox's range is limited in length
        "dict": lambda *pairs, **values: dict(*pairs, **values),
        "namespace": Guarded,
        "raise_exception": fail,
        "strftime_now": lambda form: datetime.now().strftime(form),
    }
    environment.filters["tojson"] = _to_json  # jinja2's own filter escapes HTML
    return environment


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
