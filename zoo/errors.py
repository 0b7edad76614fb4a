"""Errors that are raised on purpose. Each has a one-line message, and the exit code of a command that it ends."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from typing import Any


class ZooError(Exception):
    """The base class. Its message says what went wrong, where, and what to do about it."""

    exit_code = 1


class CheckFailed(ZooError):
    """A check failed (exit 1): two figures that must be equal differ."""


class UsageError(ZooError, ValueError):
    """The arguments are wrong (exit 2)."""

    exit_code = 2


class SpecError(UsageError):
    """A spec that describes no model: kv_heads that do not divide heads, more active experts than experts, ..."""


class IndivisibleError(SpecError):
    """A part of a model that `ranks` ranks cannot divide: `part` names it, as in "heads=14"."""

    def __init__(self, part: str, ranks: int) -> None:
        super().__init__(f"{part} cannot be divided among {ranks} ranks")
        self.part, self.ranks = part, ranks

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.part, self.ranks)


class CacheFullError(UsageError):
    """More tokens than the cache was allocated for."""


class NotAvailable(ZooError):
    """A file, the network, a package or memory is missing (exit 3)."""

    exit_code = 3


class MalformedError(ZooError, ValueError):
    """An input file is malformed or contradicts itself (exit 4)."""

    exit_code = 4


@contextmanager
def accessing(what: object, done: str = "read") -> Iterator[None]:
    """Turns an OSError within the block into NotAvailable: "FILE cannot be read: No such file or directory"."""
    try:
        yield
    except OSError as error:
        raise NotAvailable(f"{what} cannot be {done}: {error.strerror or error}") from error


def enough(lines: Iterable[str], most: int = 100) -> str:
    """Joins the lines with commas: at most the first `most`, followed by the total count if there are more."""
    lines = list(lines)
    return ", ".join(lines if len(lines) <= most else [*lines[:most], f"... ({len(lines)} in all)"])


def unknown(what: str, word: str, known: Iterable[str], listed: Iterable[str] = ()) -> UsageError:
    """Returns the error for a `word` that is not a known `what`. It suggests the most similar known words. If none is
    similar, it shows `listed` or, without `listed`, all known words."""
    return UsageError(f"unknown {what} {word[:80]!r}; {suggestion(word, known, listed)}")


def suggestion(word: str, known: Iterable[str], listed: Iterable[str] = ()) -> str:
    """Returns a question with the known words that are most similar to `word`. If none is similar, it returns `listed`
    or, without `listed`, all known words."""
    known = sorted(known)
    folded = {name.lower().replace("_", "-"): name for name in known}
    close = get_close_matches(word[:80].lower().replace("_", "-"), folded, n=3, cutoff=0.5)
    if close:
        return f"did you mean {', '.join(folded[name] for name in close)}?"
    return f"known: {', '.join(sorted(listed) or known)}"


def require_package(package: str, extra: str) -> Any:
    """Imports and returns a package. Raises NotAvailable with the pip line of the extra that provides it."""
    try:
        return import_module(package)
    except ImportError as error:
        advice = f"in the zoo's folder: pip install -e '.[{extra}]'"
        raise NotAvailable(f"this needs the package {package}; {advice}") from error
