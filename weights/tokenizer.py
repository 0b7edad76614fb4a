"""A source's tokenizer and chat template: converts a text or a user's message to token ids, and token ids to text.

A chat template is a program from a stranger. It runs in jinja2's sandbox, which gives it the values passed here and
nothing else: no files, no modules, no attributes that begin with an underscore. Its running time and the length of its
text are not limited.
"""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from weights.formats.untrusted import CONFIG_LIMIT, MB, member, read_json
from zoo.errors import MalformedError, NotAvailable, UsageError, require_package

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
TEMPLATE, OLDER_TEMPLATE = "chat_template.jinja", "chat_template.json"
TOKENIZER_CONFIG_LIMIT = 8 * MB  # it can hold thousands of added tokens
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


def read_tokenizer(folder: Path) -> Any:
    """Returns the tokenizer.json of a folder, read by the library `tokenizers`. Raises NotAvailable where there is
    none."""
    path, tokenizers = member(folder, TOKENIZER), require_package("tokenizers", "text")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no error types of its own
        raise MalformedError(f"{path} is not a readable tokenizer: {error}") from error


def encode(folder: Path, text: str, chat: bool) -> tuple[Any, list[int]]:
    """Returns the folder's tokenizer, and the text's token ids. The tokenizer, or with `chat` the chat template, adds
    special tokens. Raises NotAvailable without a tokenizer.json, UsageError for a text that is not valid Unicode."""
    if not (folder / TOKENIZER).is_file():
        raise NotAvailable(f"{folder} has no {TOKENIZER} to read a prompt with; give ids: --tokens 2,818,5279")
    tokenizer = read_tokenizer(folder)
    text = chat_prompt(folder, text) if chat else text
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the prompt is not valid UTF-8: {error.reason} at {error.start}") from error
    return tokenizer, list(tokenizer.encode(text, add_special_tokens=not chat).ids)


def decoder(tokenizer: Any, prompt: list[int]) -> Callable[[int], str]:
    """Returns a function from each new token to the text that it completes: "" for a part of a character."""
    stream = require_package("tokenizers.decoders", "text").DecodeStream(ids=prompt, skip_special_tokens=True)
    return lambda token: stream.step(tokenizer, token) or ""


def chat_prompt(folder: Path, message: str) -> str:
    """Returns the text of a chat in which the user has sent `message` and the model answers next. Raises NotAvailable
    where the folder has no chat template, MalformedError where the template fails or is refused."""
    require_package("jinja2", "text")
    has_config = (folder / TOKENIZER_CONFIG).exists()
    config = read_json(member(folder, TOKENIZER_CONFIG), TOKENIZER_CONFIG_LIMIT) if has_config else {}
    template, where = _template(folder, config)
    special = {name: config.get(name) for name in SPECIAL_TOKENS}
    # A special token is its text, or an object that holds it as "content".
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in special.items()}
    given: dict[str, Any] = {name: text for name, text in texts.items() if isinstance(text, str)}
    given |= {"messages": [{"role": "user", "content": message}], "add_generation_prompt": True}
    try:
        return _environment().from_string(template).render(**given, tools=None, documents=None)
    except Exception as error:  # any type: the template raises it
        line = next(iter(str(error).splitlines()), "")[:300]
        line = line if line.isprintable() else ascii(line)
        raise MalformedError(f"{where}: the chat template fails: {type(error).__name__}: {line}") from error


def _template(folder: Path, config: dict[str, Any]) -> tuple[str, Path]:
    """Returns the template's text and its file: the newest of the three places it can be in."""
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
    if isinstance(template, list):  # several, by name
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
        "range": environment.globals["range"],  # the sandbox's, which is limited in length
        "dict": lambda *pairs, **values: dict(*pairs, **values),
        "namespace": Guarded,
        "raise_exception": fail,
        "strftime_now": lambda form: datetime.now().strftime(form),
    }
    environment.filters["tojson"] = _to_json  # jinja2's own escapes HTML
    return environment


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
