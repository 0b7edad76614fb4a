"""Specs as JSON: the file spec.json, which describes any model, even if some of its blocks are not part of the zoo.

    {"format": "zoo-spec", "version": 1, "imports": [], "spec": {"kind": "Decoder", "vocab": 32000, ...}}

A spec is an object with its kind and its fields; a tuple is a list. Reading creates only blocks that are already
registered and runs no other code. `imports` names the modules of other blocks for error messages.
"""

import json
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from zoo.errors import MalformedError, NotAvailable, SpecError, suggestion
from zoo.model.decoder import Decoder
from zoo.registry import Spec

FORMAT, VERSION = "zoo-spec", 1


def as_json(value: Any) -> Any:
    """Converts a spec or another dataclass to JSON: an object with its "kind" and its fields; tuples become lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"kind": type(value).__name__} | {f.name: as_json(getattr(value, f.name)) for f in fields(value)}
    return [as_json(item) for item in value] if isinstance(value, tuple | list) else value


def spec_text(spec: Decoder) -> str:
    """Returns the content of a spec.json."""
    content = {"format": FORMAT, "version": VERSION, "imports": own_modules(spec), "spec": as_json(spec)}
    return json.dumps(content, indent=1) + "\n"


def own_modules(spec: Decoder) -> list[str]:
    """Returns the names of the modules that define the blocks of a spec that are not part of the zoo."""
    modules = {type(part).__module__ for part in spec.walk()}
    return sorted(module for module in modules if module.partition(".")[0] != "zoo")


def from_state(state: Any) -> Any:
    """Returns the content of a spec.json for the spec in a training run's state.json."""
    state = state if isinstance(state, dict) else {}
    imports = state.get("imports", [])  # older runs have none
    return {"format": FORMAT, "version": VERSION, "imports": imports, "spec": state.get("spec")}


def spec_from(content: Any, where: str) -> Decoder:
    """Returns the spec in the parsed content of a spec.json; `where` names the file in errors.

    Raises NotAvailable for a block whose module must be imported first. Raises MalformedError for another format, a
    later version, unknown or missing fields, and values that a field does not allow.
    """
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise MalformedError(f'{where}: must be an object with "format": "{FORMAT}"')
    version, imports = content.get("version"), content.get("imports", [])
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise MalformedError(f"{where}: version must be a positive integer")
    if version > VERSION:
        raise MalformedError(f"{where}: has version {version}; this zoo reads versions up to {VERSION}: update the zoo")
    if not isinstance(imports, list) or not all(isinstance(name, str) for name in imports):
        raise MalformedError(f"{where}: imports must be a list of module names")
    try:
        spec = _spec(content.get("spec"), "spec", imports)
    except RecursionError:
        raise MalformedError(f"{where}: is nested too deeply") from None
    except (MalformedError, NotAvailable) as error:
        raise type(error)(f"{where}: {error}") from error
    if not isinstance(spec, Decoder):
        raise MalformedError(f"{where}: spec must be a Decoder")
    return spec


def _spec(value: Any, path: str, imports: list[str]) -> Any:
    """Returns the value of a field from its JSON; `path` leads to it, as in "spec.layers[3].attn.block"."""
    if isinstance(value, list):
        return tuple(_spec(item, f"{path}[{i}]", imports) for i, item in enumerate(value))
    if not isinstance(value, dict):
        return value
    kind = _kind(value.get("kind"), path, imports)
    required = {each.name: each.default is each.default_factory is MISSING for each in fields(kind)}
    if strange := value.keys() - {"kind", *required}:
        raise MalformedError(f"{path}: {kind.__name__} has no field {min(strange)[:80]!r}")
    if missing := [name for name, needed in required.items() if needed and name not in value]:
        raise MalformedError(f"{path}: {kind.__name__} needs {', '.join(missing)}")
    given = {name: _spec(item, f"{path}.{name}", imports) for name, item in value.items() if name != "kind"}
    try:
        return kind(**given)
    except SpecError as error:
        raise MalformedError(f"{path}: {error}") from error


def _kind(name: Any, path: str, imports: list[str]) -> type[Spec]:
    if not isinstance(name, str):
        raise MalformedError(f'{path}: must have a "kind"')
    if name in Spec.kinds:
        return Spec.kinds[name]
    if imports:
        modules = ", ".join(imports)
        raise NotAvailable(f"{path}: no block {name[:80]!r} is defined; import {modules[:200]} first, or --import it")
    raise MalformedError(f"{path}: unknown kind {name[:80]!r}; {suggestion(name, Spec.kinds)}")
