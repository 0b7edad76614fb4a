"""Finds a source by its name: a folder, a .gguf file, or a repository of the Hugging Face Hub, which is downloaded.

huggingface_hub downloads a repository into its own cache, with its progress bar and its settings (HF_HOME, HF_TOKEN,
HF_HUB_OFFLINE, HF_ENDPOINT). Only the files that the zoo reads are downloaded.
"""

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from weights.formats.hf_folder import CONFIG, MODELOPT, check_scheme
from weights.formats.safetensors_folder import GENERATION, INDEX, SINGLE, by_shard, check_shards, weight_map
from weights.formats.untrusted import CONFIG_LIMIT, header_tensors, member, read_json
from weights.formats.zoo_folder import SPEC
from weights.matching import StoredTensor
from weights.tokenizer import OLDER_TEMPLATE, TEMPLATE, TOKENIZER, TOKENIZER_CONFIG
from zoo import catalog
from zoo.errors import MalformedError, NotAvailable, UsageError, ZooError, enough
from zoo.training.checkpoints import STATE, last_checkpoint

SMALL_FILES = (CONFIG, GENERATION, INDEX, TOKENIZER, TOKENIZER_CONFIG, TEMPLATE, OLDER_TEMPLATE, MODELOPT)
SAVED = "model"  # the subfolder of a finished run for its model
HUB_ID = re.compile(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+")
log = logging.getLogger(__name__)


def is_path(word: str | Path) -> bool:
    """Whether a word names an existing file or folder. A folder with the name of a preset or family needs a separator:
    qwen3 is the family, ./qwen3 the folder."""
    path = Path(word)
    named = isinstance(word, Path) or len(path.parts) > 1 or word.startswith(".") or not catalog.is_known(word)
    return path.is_file() or (path.is_dir() and named)


def described_by(folder: Path) -> Path:
    """Returns the file that describes a folder's model: its config.json or spec.json. In a run of zoo.train, this is
    the file of the saved model or, before that exists, the state.json of the last checkpoint. Raises NotAvailable if no
    file does."""
    files = [parent / name for parent in (folder, folder / SAVED) for name in (CONFIG, SPEC)]
    found = next((file for file in files if file.is_file()), None)
    if found is not None:
        return found
    last = last_checkpoint(folder)
    if last is None:
        raise NotAvailable(f"{folder}: there is no {CONFIG} and no {SPEC}")
    log.info("%s has saved no model yet: its last checkpoint, %s, is read", folder, last.name)
    return last / STATE


def locate(source: str | Path, revision: str | None = None, offline: bool = False) -> Path:
    """Returns the folder or file of a source: a path, a preset, or a repository, "org/name" or "org/name@revision".

    A repository's name and resolved commit are logged. With `offline`, no network requests are made. Raises UsageError
    for a path with a revision, and NotAvailable, with advice, for a source that cannot be found or downloaded.
    """
    if is_path(source):
        if revision is not None:
            raise UsageError(f"{source} is a path and has no revisions, got revision={revision!r}")
        return Path(source)
    if ".py:" in str(source):
        raise UsageError(f"{source} describes a model and has no weights: give a folder, a .gguf file or a hub id")
    name, _, at = str(source).partition("@")
    if at and revision not in (None, at):
        raise UsageError(f"{source} asks for revision {at!r}, and the call for {revision!r}")
    return download(repository(name), revision or at or None, offline)


def locate_tokenizer(source: str, offline: bool = False) -> Path:
    """Returns the folder, tokenizer.json or .gguf file that holds a source's tokenizer. From a repository, only the
    small files are downloaded. Raises the errors of `locate`."""
    if is_path(source):
        return Path(source)
    name, _, revision = source.partition("@")
    return _snapshot(repository(name), revision or None, SMALL_FILES, offline)


def repository(name: str) -> str:
    """Returns the hub id for a name, which is a hub id or a preset. Raises NotAvailable for other names."""
    if HUB_ID.fullmatch(name) and not name.startswith(".") and not name.endswith(".gguf"):
        return name
    try:
        return catalog.sizes()[catalog.resolve(name)].hub
    except ZooError:
        raise NotAvailable(
            f"there is no folder and no .gguf file {name[:300]!r}, and it is neither a hub id (ORG/NAME or "
            "ORG/NAME@REVISION) nor a preset (python -m zoo.build --list)"
        ) from None


def download(repo: str, revision: str | None, offline: bool) -> Path:
    """Downloads the files of a repository that the zoo reads, and returns their folder in the download cache."""
    folder = _snapshot(repo, revision, SMALL_FILES, offline)
    log.info("%s at commit %s", repo, folder.name)
    if (folder / CONFIG).exists():  # before gigabytes of unreadable weights are downloaded
        check_scheme(folder, read_json(member(folder, CONFIG), CONFIG_LIMIT))
    shards = sorted(set(weight_map(folder).values())) if (folder / INDEX).exists() else [SINGLE]
    if not _is_offline(offline):
        _snapshot(repo, folder.name, (*SMALL_FILES, *shards), offline)
    if absent := [name for name in (CONFIG, *shards) if not (folder / name).exists()]:
        in_repository = "the repository; see which files it has, or take another revision"
        where = _not_cached(offline) if _is_offline(offline) else in_repository
        raise NotAvailable(f"{repo} at commit {folder.name}: {enough(absent)} not in {where}")
    return folder


def download_config(repo: str, offline: bool = False) -> Path:
    """Downloads the config.json of a repository, and returns its path in the download cache."""
    folder = _snapshot(repo, None, (CONFIG,), offline)
    return member(folder, CONFIG)


def read_repository_headers(repo: str, offline: bool = False) -> list[StoredTensor] | None:
    """Returns every tensor of a repository, from the headers of its safetensors files, which are fetched without the
    weights; None if it has no such files.

    Raises NotAvailable, with advice, if the hub cannot be reached, and MalformedError for invalid headers.
    """
    from huggingface_hub import HfApi, errors

    if _is_offline(offline):
        raise NotAvailable(f"{repo}: the headers of its weights are not in {_not_cached(offline)}")
    folder = _snapshot(repo, None, (CONFIG, INDEX), offline)

    def read(shard: str) -> list[StoredTensor]:
        found = HfApi().parse_safetensors_file_metadata(repo, shard, revision=folder.name)
        tensors = {name: vars(info) for name, info in found.tensors.items()}
        keys = ("dtype", "shape", "data_offsets")
        header = {name: {key: _as_list(info[key]) for key in keys} for name, info in tensors.items()}
        return header_tensors(f"{repo}/{shard}", {**header, "__metadata__": found.metadata or {}})

    try:
        if (folder / INDEX).exists():
            return check_shards(f"{repo}/{INDEX}", by_shard(weight_map(folder)), read)
        return read(SINGLE)
    except errors.EntryNotFoundError:
        return None
    except (errors.SafetensorsParsingError, AttributeError, KeyError, TypeError) as error:  # JSON, but of another form
        raise MalformedError(f"{repo}: the header of a safetensors file is invalid: {_first_line(error)}") from error
    except (ZooError, MemoryError):
        raise
    except Exception as error:  # the hub's own errors, its HTTP library's and the system's: all are external
        raise NotAvailable(f"{repo}: {_reason(error, repo, offline)}") from error


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _snapshot(repo: str, revision: str | None, files: Iterable[str], offline: bool) -> Path:
    """Downloads those `files` that the repository has, and returns their folder in the download cache."""
    from huggingface_hub import snapshot_download  # here, since it takes a third of a second
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        """The hub's progress bar, disabled where stderr is not a terminal."""

        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **{"disable": None, **settings})  # type: ignore[no-untyped-call]

    try:
        options: dict[str, Any] = dict(allow_patterns=list(files), local_files_only=offline, tqdm_class=Bar)
        return Path(snapshot_download(repo, revision=revision, **options))
    except Exception as error:  # the hub's own errors, its HTTP library's and the system's: all are external
        raise NotAvailable(f"{repo}{f'@{revision}' if revision else ''}: {_reason(error, repo, offline)}") from error


def _is_offline(offline: bool) -> bool:
    from huggingface_hub import constants

    return offline or constants.HF_HUB_OFFLINE


def _not_cached(offline: bool) -> str:
    option = "--offline (offline=)" if offline else "HF_HUB_OFFLINE"
    return f"the download cache, and {option} forbids downloads; download once without it"


def _reason(error: Exception, repo: str, offline: bool) -> str:
    """Returns the reason why a repository cannot be downloaded, with advice."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repo}"
    login = "`hf auth login` or HF_TOKEN"
    match error:
        case errors.GatedRepoError():
            return f"access is gated; ask for it at {page}, then log in with {login}"
        case errors.RepositoryNotFoundError():
            return f"there is no such repository, or it is private; see {page}, or log in with {login}"
        case errors.RevisionNotFoundError():
            return f"there is no such revision; see the branches, tags and commits at {page}/commits/main"
        case errors.LocalEntryNotFoundError() if _is_offline(offline):
            missing = re.search(r"files?\(?s?\)? are missing \((.*?)\)\.", str(error))
            return f"{missing[1] if missing else ''} not in {_not_cached(offline)}".lstrip()
        case errors.LocalEntryNotFoundError():
            return f"not in the download cache, and the hub cannot be reached: {_first_line(error.__cause__ or error)}"
        case OSError() if error.errno is not None:
            return f"cannot be stored in {constants.HF_HUB_CACHE}: {error.strerror}"
        case _:
            return f"unexpected answer from the hub: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
