"""Text to train on: a file, a folder or Python's standard library, split into training, tuning and held-out text.

The text is never in memory as a whole: files are listed and hashed once, and read again in blocks for tokenisation.
"""

import codecs
import hashlib
import os
import platform
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from zoo.errors import NotAvailable, UsageError, accessing

HELDOUT_SHARE, TUNING_SHARE = 0.05, 0.025  # shares of the files, chosen by a hash of the path
BLOCK_BYTES = 1 << 18
# The standard library's tests, and packages that are installed inside its folder.
LIBRARY_LEFT_OUT = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})


@dataclass(frozen=True)
class TextFile:
    """A file of UTF-8 text. `name` is its path inside the folder, with "/". `digest` is the SHA-256 of its bytes.
    `modified` is its modification time in nanoseconds, which reveals later changes."""

    name: str
    path: Path
    size: int
    digest: str
    modified: int

    @cached_property
    def place(self) -> float:
        """Returns a number in [0, 1) that depends only on the name. It decides into which split the file goes."""
        return int.from_bytes(hashlib.sha256(_as_bytes(self.name)).digest()[:8]) / 2**64


@dataclass(frozen=True)
class Piece:
    """The bytes of a file from `start` to `end`. Both are at the start of a character."""

    file: TextFile
    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start

    def blocks(self) -> Iterator[str]:
        """Yields the text in order, in parts of about BLOCK_BYTES. A part ends at the end of a line, unless the line is
        longer than a part.

        Raises UsageError if the file has changed since it was listed, NotAvailable if it cannot be read.
        """
        changed = UsageError(f"{self.file.path} has changed while it was read; start again")
        with accessing(self.file.path), self.file.path.open("rb") as file:
            status = os.fstat(file.fileno())
            if (status.st_size, status.st_mtime_ns) != (self.file.size, self.file.modified):
                raise changed
            file.seek(self.start)
            rest, left = b"", len(self)
            while left:
                data = file.read(min(left, BLOCK_BYTES))
                left -= len(data)
                rest += data
                line_end = rest.rfind(b"\n") + 1 if left else len(rest)
                try:
                    text, used = codecs.utf_8_decode(rest[: line_end or None], "strict", not left)
                except UnicodeDecodeError as error:
                    raise changed from error
                if not data:
                    raise changed
                yield text
                rest = rest[used:]


class Splits(NamedTuple):
    """Disjoint parts of a text. Use `tuning` to choose learning rates, and `heldout` only for results."""

    train: tuple[Piece, ...]
    tuning: tuple[Piece, ...]
    heldout: tuple[Piece, ...]


@dataclass(frozen=True)
class Corpus:
    """Distinct text files, sorted by name."""

    name: str
    files: tuple[TextFile, ...]

    @cached_property
    def hash(self) -> str:
        """Returns 16 hexadecimal digits that depend on the names and contents of the files."""
        entries = (_as_bytes(file.name) + b"\0" + file.digest.encode() + b"\n" for file in self.files)
        return hashlib.sha256(b"".join(entries)).hexdigest()[:16]

    @cached_property
    def splits(self) -> Splits:
        """Returns training, tuning and held-out text. Raises UsageError for a single file too short to split."""
        return _split(self.files)


def read_text(path: str | Path, leave_out: str | Path | None = None) -> Corpus:
    """Reads the UTF-8 text of one file, or of all files in a folder and its subfolders.

    In a folder, these are left out: files with bytes that are not UTF-8 or with a zero byte, empty files, exact copies
    of an earlier file, links and special files, hidden files and folders (names that begin with "."), and the folder
    `leave_out`. A `path` that is itself a link is followed.

    Raises NotAvailable if the path does not exist or may not be read, UsageError if there is no text.
    """
    path = Path(path)
    with accessing(path):
        path.stat()
    name = path.resolve().name or str(path)
    if path.is_dir():
        hidden = None if leave_out is None else Path(leave_out).resolve()
        found = _walk(path, lambda entry, is_folder: is_folder and entry.resolve() == hidden)
        return _corpus(name, found, f"there is no UTF-8 text in {path}")
    if not path.is_file():
        raise UsageError(f"{path} is neither a file nor a folder")
    return _corpus(name, [(name, path)], f"{path} is empty or not UTF-8 text")


def standard_library() -> Corpus:
    """Returns the Python source of this interpreter's standard library, without tests and installed packages.

    Files that were written when Python was built (`_sysconfigdata...`, `config-...`) are left out too, since they
    differ between machines with the same version. Raises NotAvailable if the standard library is not a folder of files.
    """
    folder = Path(sysconfig.get_path("stdlib"))

    def unwanted(entry: Path, is_folder: bool) -> bool:
        if is_folder:
            return entry.name in LIBRARY_LEFT_OUT or entry.name.startswith("config-")
        return entry.suffix != ".py" or entry.name.startswith("_sysconfigdata")

    missing = f"Python's standard library is not in {folder}; name a text to train on"
    if not folder.is_dir():
        raise NotAvailable(missing)
    return _corpus(f"Python {platform.python_version()} standard library", _walk(folder, unwanted), missing)


def _walk(top: Path, unwanted: Callable[[Path, bool], bool]) -> Iterator[tuple[str, Path]]:
    """Yields the name and path of every regular file, in no fixed order. Links are not followed, so each folder is
    visited only once."""

    def fail(error: OSError) -> None:
        with accessing(error.filename):
            raise error

    for folder, folders, files in os.walk(top, onerror=fail):
        inside = Path(folder)
        folders[:] = [name for name in folders if name[0] != "." and not unwanted(inside / name, True)]
        for path in (inside / name for name in files if name[0] != "."):
            if not unwanted(path, False) and path.is_file() and not path.is_symlink():
                yield path.relative_to(top).as_posix(), path


def _corpus(name: str, found: Iterable[tuple[str, Path]], nothing: str) -> Corpus:
    """Returns the corpus of all files that are text. Of files with equal content, only the first by name is used.
    Raises UsageError with the message `nothing` if there is no text."""
    files = dict[str, TextFile]()
    for each, path in sorted(found):
        if (file := _listed(each, path)) and file.size:
            files.setdefault(file.digest, file)
    if not files:
        raise UsageError(nothing)
    return Corpus(name, tuple(files.values()))


def _listed(name: str, path: Path) -> TextFile | None:
    """Returns the file with its hash; None if it is not text. A file with a zero byte is not text, since the byte
    tokenizer uses zero as the separator."""
    digest, decoder, size = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")(), 0
    with accessing(path), path.open("rb") as file:
        modified = os.fstat(file.fileno()).st_mtime_ns
        try:
            while data := file.read(BLOCK_BYTES):
                decoder.decode(data)
                if 0 in data:
                    return None
                digest.update(data)
                size += len(data)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return None
    return TextFile(name, path, size, digest.hexdigest(), modified)


def _split(files: tuple[TextFile, ...]) -> Splits:
    """Divides files by their `place`, so that an additional file does not move others. At least one file is held out,
    and at least one is not.

    Files are ordered by `place`, so the first part of a split is a random sample of it. A single file is cut, and its
    end is held out. If no file's place makes it tuning text, the end of the largest training piece is used for tuning.
    """
    ordered = sorted(files, key=lambda file: (file.place, file.name))
    pieces = [Piece(file, 0, file.size) for file in ordered]
    if len(pieces) == 1:
        train, heldout = _cut(pieces[0], HELDOUT_SHARE * len(pieces[0]))
        pieces, first = [heldout, train], 1
    else:
        first = sum(file.place < HELDOUT_SHARE for file in ordered)
        first = min(max(first, 1), len(pieces) - 1)
    held, rest = pieces[:first], pieces[first:]
    tuning = [piece for piece in rest if piece.file.place < HELDOUT_SHARE + TUNING_SHARE]
    if len(files) > 2 and 0 < len(tuning) < len(rest):
        rest = rest[len(tuning) :]
    else:
        largest = max(range(len(rest)), key=lambda i: len(rest[i]))
        nbytes = min(TUNING_SHARE * sum(map(len, rest)), len(rest[largest]) / 2)
        rest[largest], end = _cut(rest[largest], nbytes)
        tuning = [end]
    return Splits(tuple(rest), tuple(tuning), tuple(held))


def _cut(piece: Piece, nbytes: float) -> tuple[Piece, Piece]:
    """Splits a piece in two, the second of about `nbytes`. The cut is at the next start of a line, or in a long line at
    the start of a character. Raises UsageError for a piece that is too short."""
    at = piece.end - max(1, round(nbytes))
    with accessing(piece.file.path), piece.file.path.open("rb") as file:
        file.seek(at)
        ahead = file.read(min(piece.end - at, BLOCK_BYTES))
        line = ahead.find(b"\n", 0, (piece.end - at) // 2) + 1
        if line:
            at += line
        else:
            while at > piece.start and ahead[:1] and 0x80 <= ahead[0] < 0xC0:  # back to the start of the character
                at -= 1
                file.seek(at)
                ahead = file.read(1)
    if not piece.start < at < piece.end:
        size, path = piece.file.size, piece.file.path
        raise UsageError(f"{path} has {size} bytes, too few to keep some for tuning and for held-out text")
    return Piece(piece.file, piece.start, at), Piece(piece.file, at, piece.end)


def _as_bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")  # a file name need not be valid Unicode
