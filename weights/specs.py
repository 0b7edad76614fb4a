"""Finds the spec that a word on a command line names, wherever it is described.

The word is one of these, in this order of precedence:

1. FILE.py:NAME: a Decoder, or a function that returns a Decoder, in a Python file, which is executed
2. a config.json, spec.json or .gguf file; or a folder with one of the .json files, such as a run of zoo.train
3. a preset, a family (its smallest size) or the hub id of a preset; ./NAME is a folder of that name
4. a hub id, whose config.json is downloaded or in the download cache
"""

import logging
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import Any

from weights.formats.hf_folder import CONFIG
from weights.formats.safetensors_folder import has_headers, read_headers
from weights.formats.stored_shapes import stored_shapes
from weights.formats.untrusted import CONFIG_LIMIT, read_json
from weights.formats.zoo_folder import SPEC
from weights.loading import open_source
from weights.matching import StoredTensor
from weights.sources import HUB_ID, described_by, download_config, is_path, read_repository_headers
from zoo import catalog
from zoo.catalog import FoundSpec
from zoo.errors import MalformedError, NotAvailable, UsageError, suggestion
from zoo.hf.estimate import estimate
from zoo.model.decoder import Decoder
from zoo.spec_files import from_state, spec_from
from zoo.training.checkpoints import STATE

GGUF, PYTHON = ".gguf", ".py:"
log = logging.getLogger(__name__)


def find_spec(word: str, ignore_fields: Iterable[str] = (), estimated: bool = False) -> FoundSpec:
    """Returns the model that a word names. `ignore_fields` are fields of a config.json to ignore.

    With `estimated`, a config.json whose model_type no family reads is estimated from the fields that many families
    share (zoo.hf.estimate), and from the headers of its safetensors files, if there are any.

    Raises UsageError for an unknown name. Raises NotAvailable for a hub id that cannot be reached and for a folder
    without a description. Raises MalformedError for an invalid description.
    """
    if not word:
        raise UsageError("a model's name is empty")
    if PYTHON in word:
        return _from_python(word)
    if is_path(word):
        return _from_path(Path(word), ignore_fields, estimated)
    try:
        preset = catalog.resolve(word)
    except UsageError:
        if word.startswith((".", "/")) or word.endswith("/"):
            raise NotAvailable(f"there is no folder and no file {word}") from None
        if not HUB_ID.fullmatch(word):
            raise
        try:
            config = read_json(download_config(word), CONFIG_LIMIT)
        except NotAvailable as error:
            raise NotAvailable(f"there is no folder {word}, and as a hub id, {error}") from error
        headers = partial(read_repository_headers, word) if estimated else None
        return _of_config(word.rpartition("/")[2], config, word, ignore_fields, headers)
    return catalog.found(preset)


def _from_path(path: Path, ignore_fields: Iterable[str], estimated: bool) -> FoundSpec:
    """Returns the model of a folder, a run, a config.json, a spec.json or a .gguf file."""
    if path.suffix == GGUF:
        return FoundSpec(_label(path.stem), open_source(path).spec(ignore_fields), path=path)
    folder = path if path.is_dir() else path.parent
    file = described_by(folder) if path.is_dir() else path
    name = _label(folder.resolve().name)
    if file.name == CONFIG:
        config = read_json(file, CONFIG_LIMIT)
        headers = partial(_headers_in, file.parent) if estimated else None
        return replace(_of_config(name, config, str(folder), ignore_fields, headers), path=file.parent)
    if file.suffix == ".json":
        content = read_json(file, CONFIG_LIMIT)
        spec = spec_from(from_state(content) if file.name == STATE else content, str(file))
        return FoundSpec(name if file.name in (SPEC, STATE) else _label(file.stem), spec, path=file.parent)
    if file.suffix == ".py":
        raise UsageError(f"{path} is a Python file: write {path}:NAME, with the name of a Decoder in it")
    raise UsageError(f"{path} is not a {CONFIG}, {SPEC} or {GGUF} file")


def _of_config(
    name: str,
    config: dict[str, Any],
    where: str,
    ignore_fields: Iterable[str],
    headers: Callable[[], list[StoredTensor] | None] | None,
) -> FoundSpec:
    """Returns the model that a config describes. If no family reads it, returns an estimate, unless `headers` is None;
    `headers` returns the stored tensors, or None if there are none."""
    try:
        if headers is None or catalog.is_read(config):
            return FoundSpec(name, catalog.from_hf(config, ignore_fields), config=config)
        tensors = _read_if_there(headers)
        guess = estimate(config, None if tensors is None else stored_shapes(where, tensors, config))
        return FoundSpec(name, guess.spec, config=config, estimate=guess)
    except MalformedError as error:
        raise MalformedError(f"{where}/{error}" if str(error).startswith(CONFIG) else str(error)) from error


def _read_if_there(headers: Callable[[], list[StoredTensor] | None]) -> list[StoredTensor] | None:
    try:
        return headers()
    except NotAvailable as error:
        log.warning("%s; the parameters are estimated from %s alone", error, CONFIG)
        return None


def _headers_in(folder: Path) -> list[StoredTensor] | None:
    return read_headers(folder)[1] if has_headers(folder) else None


def _label(name: str) -> str:
    """Returns a folder's or file's name for tables, with a leading "./" if a preset has the same name."""
    return f"./{name}" if name in catalog.sizes() else name


def _from_python(word: str) -> FoundSpec:
    """Runs the file of FILE.py:NAME. Returns the Decoder NAME, or the Decoder that the function NAME returns."""
    file, _, name = word.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise NotAvailable(f"there is no file {file}")
    module = run_file(path)
    value = getattr(module, name, None)
    if callable(value):
        value = _attempt(path, value)
    if not isinstance(value, Decoder):
        known = [each for each, held in vars(module).items() if isinstance(held, Decoder)]
        hint = f"; {suggestion(name, known)}" if known else ""
        raise UsageError(f"{file} has no Decoder {name!r}, and no function of that name that returns one{hint}")
    return FoundSpec(name, value, path=path)


def run_file(path: Path) -> ModuleType:
    """Imports a Python file as a module with the file's name, once per process, and adds its folder to sys.path."""
    known = sys.modules.get(path.stem)
    if known is not None and Path(known.__file__ or "").resolve() == path.resolve():
        return known
    if known is not None:
        raise UsageError(f"{path}: a module {path.stem!r} is already loaded; rename the file")
    if str(path.parent.resolve()) not in sys.path:
        sys.path.insert(0, str(path.parent.resolve()))
    found = spec_from_file_location(path.stem, path)
    assert found is not None
    assert found.loader is not None
    module = sys.modules[path.stem] = module_from_spec(found)
    try:
        _attempt(path, lambda: found.loader.exec_module(module))
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module


def _attempt(path: Path, run: Any) -> Any:
    """Returns the result of `run`, which runs the user's file. Raises UsageError with the line that failed."""
    try:
        return run()
    except (Exception, SystemExit) as error:
        frames = extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
        line = f":{lines[-1]}" if lines else ""
        raise UsageError(f"{path}{line}: {type(error).__name__}: {error}") from error
