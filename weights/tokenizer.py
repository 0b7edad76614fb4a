"""A source's chat template: a message of the user -> the text that the model was trained to answer.

A template is a program from a stranger. It runs in jinja2's sandbox, which lets it see the values given here and
nothing behind them: no files, no modules, no attributes that begin with an underscore. How long it takes and how much
text it makes is up to it.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from weights.formats.json_limits import CONFIG_LIMIT, MB, member, read_json
from zoo.errors import MalformedError, NotAvailable, require_package

TEMPLATE, OLDER_TEMPLATE, TOKENIZER_CONFIG = "chat_template.jinja", "chat_template.json", "tokenizer_config.json"
TOKENIZER_CONFIG_LIMIT = 8 * MB  # it can hold thousands of added tokens
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


def chat_prompt(folder: Path, message: str) -> str:
    """The text of a chat in which the user has said `message` and it is the model's turn.

    Raises NotAvailable where the folder has no chat template, MalformedError where that fails or is refused.
    """
    require_package("jinja2", "text")
    settings = _settings(folder)
    template, where = _template(folder, settings)
    special = {name: text for name in SPECIAL if (text := _text(settings.get(name))) is not None}
    messages = [{"role": "user", "content": message}]
    try:
        return (
            _environment()
            .from_string(template)
            .render(messages=messages, add_generation_prompt=True, tools=None, documents=None, **special)
        )
    except Exception as error:  # the template's own, which may be any
        raise MalformedError(f"{where}: the chat template fails: {type(error).__name__}: {_line(error)}") from error


def _settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, empty where there is none."""
    if not (folder / TOKENIZER_CONFIG).exists():
        return {}
    return read_json(member(folder, TOKENIZER_CONFIG), TOKENIZER_CONFIG_LIMIT)


def _template(folder: Path, settings: dict[str, Any]) -> tuple[str, Path]:
    """The template's text and the file it stands in: the newest of the three places."""
    if (path := folder / TEMPLATE).exists():
        with member(folder, TEMPLATE).open("rb") as file:
            data = file.read(CONFIG_LIMIT + 1)
        if len(data) > CONFIG_LIMIT:
            raise MalformedError(f"{path} is above the {CONFIG_LIMIT} bytes that such a file can need")
        return data.decode(errors="replace"), path
    if (path := folder / OLDER_TEMPLATE).exists():
        settings = read_json(member(folder, OLDER_TEMPLATE), CONFIG_LIMIT)
    else:
        path = folder / TOKENIZER_CONFIG
    said = settings.get("chat_template")
    if isinstance(said, list):  # several, by name
        said = next(
            (one.get("template") for one in said if isinstance(one, dict) and one.get("name") == "default"), None
        )
    if said is None:
        raise NotAvailable(f"{folder} has no chat template; continue the prompt as it is, without --chat")
    if not isinstance(said, str):
        raise MalformedError(f"{path}: chat_template is a {type(said).__name__}, not text")
    return said, path


def _text(token: Any) -> str | None:
    """A special token's text, which may stand in an object of its properties."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _environment() -> Any:
    """What published templates expect of the reference implementation, and no more."""
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """{% generation %} marks what a model is trained on; here its body stands for itself."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)

    class Guarded(Namespace):
        """jinja2's, which would take names that begin with an underscore."""

        def __init__(self, /, *pairs: Any, **values: Any) -> None:
            super().__init__()
            for name, value in dict(*pairs, **values).items():
                self[name] = value

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise SecurityError(f"a namespace takes no {name!r}")
            super().__setitem__(name, value)

    def fail(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.globals = {
        "range": environment.globals["range"],  # the sandbox's, which has an end
        "dict": lambda *pairs, **values: dict(*pairs, **values),
        "namespace": Guarded,
        "raise_exception": fail,
        "strftime_now": lambda form: datetime.now().strftime(form),
    }
    environment.filters["tojson"] = _to_json  # jinja2's own is for HTML
    return environment


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _line(error: Exception) -> str:
    """The first line of what is said, printable: a template chooses its words."""
    said = next(iter(str(error).splitlines()), "")[:300]
    return said if said.isprintable() else ascii(said)
