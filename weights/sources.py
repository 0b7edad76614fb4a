"""From the name of a source to what is here: a folder, a .gguf file, a repository of the Hugging Face Hub in the cache.

A repository is fetched by huggingface_hub into its own cache, with its progress bar and its settings (HF_HOME,
HF_TOKEN, HF_HUB_OFFLINE, HF_ENDPOINT), and only the files that are read here.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from weights.formats.hf_folder import CONFIG, GENERATION, INDEX, SINGLE, weight_map
from weights.formats.quantization import MODELOPT, check_config
from zoo import catalog
from zoo.errors import NotAvailable, UsageError, ZooError, enough

TOKENIZER, TEMPLATE = "tokenizer.json", "chat_template.jinja"
SMALL = (CONFIG, GENERATION, INDEX, TOKENIZER, "tokenizer_config.json", TEMPLATE, "chat_template.json", MODELOPT)
NAME = re.compile(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+")
log = logging.getLogger(__name__)


def locate(source: str | Path, revision: str | None = None, offline: bool = False) -> Path:
    """The folder or file of a source: a path, a preset, or a repository, "org/name" or "org/name@revision".

    A repository's name and the commit that it was resolved to are logged. `offline` asks nothing of the network.
    Raises UsageError for a revision of what has none, and NotAvailable, with what to do, for what cannot be had.
    """
    path = Path(source)
    if path.exists():
        if revision is not None:
            raise UsageError(f"{source} has no revisions: revision={revision!r} says nothing there")
        return path
    name, _, at = str(source).partition("@")
    if at and revision not in (None, at):
        raise UsageError(f"{source} asks for revision {at!r}, and the call for {revision!r}")
    return download(repository(name), revision or at or None, offline)


def repository(name: str) -> str:
    """The hub id that a name stands for: itself, or that of a preset. Raises NotAvailable where it is neither."""
    if NAME.fullmatch(name) and not name.startswith(".") and not name.endswith(".gguf"):
        return name
    try:
        return catalog.sizes()[catalog.resolve(name)].hub
    except ZooError:
        raise NotAvailable(
            f"there is no folder and no .gguf file {name[:300]!r}, and it is neither a hub id (ORG/NAME or "
            "ORG/NAME@REVISION) nor a preset (python -m zoo.build --list)"
        ) from None


def download(repo: str, revision: str | None, offline: bool) -> Path:
    """The cache's folder of a repository, with all files that are read of it."""
    folder = _snapshot(repo, revision, SMALL, offline)
    log.info("%s at commit %s", repo, folder.name)
    check_config(folder)  # before gigabytes are fetched that cannot be read
    shards = sorted(set(weight_map(folder).values())) if (folder / INDEX).exists() else [SINGLE]
    if not _is_offline(offline):
        _snapshot(repo, folder.name, (*SMALL, *shards), offline)
    absent = [name for name in (CONFIG, *shards) if not (folder / name).exists()]
    if absent:
        where = "the repository; see what it holds, or take another revision"
        if _is_offline(offline):
            where = f"the download cache, and {_why(offline)} forbids to fetch; fetch once without it"
        raise NotAvailable(f"{repo} at commit {folder.name}: {enough(absent)} not in {where}")
    return folder


def _snapshot(repo: str, revision: str | None, files: Iterable[str], offline: bool) -> Path:
    """The cache's folder of a repository, with those of these files that it has."""
    from huggingface_hub import snapshot_download  # only here: it takes a third of a second
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        """The hub's own, but none where stderr is no terminal."""

        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **{"disable": None, **settings})  # type: ignore[no-untyped-call]

    try:
        return Path(
            snapshot_download(
                repo, revision=revision, allow_patterns=list(files), local_files_only=offline, tqdm_class=Bar
            )
        )
    except Exception as error:  # its own, those of its HTTP library, the system's: all of them are the outside's
        raise NotAvailable(f"{repo}{f'@{revision}' if revision else ''}: {_reason(error, repo, offline)}") from error


def _is_offline(offline: bool) -> bool:
    from huggingface_hub import constants

    return offline or constants.HF_HUB_OFFLINE


def _why(offline: bool) -> str:
    return "--offline (offline=)" if offline else "HF_HUB_OFFLINE"


def _reason(error: Exception, repo: str, offline: bool) -> str:
    """Why a repository cannot be had, and what to do about it."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repo}"
    login = "`hf auth login` or HF_TOKEN"
    match error:
        case errors.GatedRepoError():
            return f"access is gated; ask for it at {page}, then say who you are with {login}"
        case errors.RepositoryNotFoundError():
            return f"there is no such repository, or it is private; see {page}, or say who you are with {login}"
        case errors.RevisionNotFoundError():
            return f"there is no such revision; see the branches, tags and commits at {page}/commits/main"
        case errors.LocalEntryNotFoundError() if _is_offline(offline):
            missing = re.search(r"files?\(?s?\)? are missing \((.*?)\)\.", str(error))
            what = f"{missing[1]} not in the download cache" if missing else "not in the download cache"
            return f"{what}, and {_why(offline)} forbids to fetch; fetch once without it"
        case errors.LocalEntryNotFoundError():
            return f"not in the download cache, and the hub cannot be reached: {_told(error.__cause__ or error)}"
        case OSError() if error.errno is not None:
            return f"cannot be stored in {constants.HF_HUB_CACHE}: {error.strerror}"
        case _:
            return f"the hub does not answer as it should: {_told(error)}"


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
