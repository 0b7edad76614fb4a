"""Text to train on: a file, a folder or Python's own standard library, split into training, tuning and held-out text.

Nothing here holds the text itself: files are listed and hashed once, and read again in blocks for tokenisation.
"""

import codecs
import hashlib
import os
import platform
import stat
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NamedTuple

from zoo.errors import NotAvailable, UsageError
from zoo.units import format_bytes

HELDOUT_SHARE, TUNING_SHARE = 0.05, 0.025  # shares of the files, by a hash of their path
BLOCK_BYTES = 1 << 18
# The standard library's own tests, and packages that are installed inside its folder.
LIBRARY_LEFT_OUT = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})


@dataclass(frozen=True)
class TextFile:
    """A file of UTF-8 text. `name` is its path inside the folder, with "/"; `digest` is the SHA-256 of its bytes.
    `modified`, in nanoseconds, reveals a change after it was listed."""

    name: str
    path: Path
    size: int
    digest: str
    modified: int

    @cached_property
    def place(self) -> float:
        """Returns a number in [0, 1) that follows from the name alone. It decides the split of the file."""
        return int.from_bytes(hashlib.sha256(_as_bytes(self.name)).digest()[:8]) / 2**64


@dataclass(frozen=True)
class Piece:
    """The bytes from `start` to `end` of a file, both at the start of a character."""

    file: TextFile
    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start

    def blocks(self) -> Iterator[str]:
        """Yields the text in order, in parts of about BLOCK_BYTES. A part ends with a line, unless the line is longer
        than a part.

        Raises UsageError if the file has changed since it was listed, NotAvailable if it cannot be read.
        """
        changed = UsageError(f"{self.file.path} has changed while it was read; start again")
        with _open(self.file.path) as file:
            if _stamp(file.fileno()) != (self.file.size, self.file.modified):
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
    """Disjoint parts of a text. `tuning` is for choosing learning rates; `heldout` is for results only."""

    train: tuple[Piece, ...]
    tuning: tuple[Piece, ...]
    heldout: tuple[Piece, ...]


@dataclass(frozen=True)
class Corpus:
    """Distinct text files, sorted by name. `left_out` counts the other files of the folder, by reason."""

    name: str
    files: tuple[TextFile, ...]
    left_out: tuple[tuple[str, int], ...] = ()

    @cached_property
    def hash(self) -> str:
        """Returns 16 hexadecimal digits that follow from the names and contents of the files."""
        entries = (_as_bytes(file.name) + b"\0" + file.digest.encode() + b"\n" for file in self.files)
        return hashlib.sha256(b"".join(entries)).hexdigest()[:16]

    @property
    def nbytes(self) -> int:
        """The number of bytes of text."""
        return sum(file.size for file in self.files)

    @cached_property
    def splits(self) -> Splits:
        """Returns training, tuning and held-out text. Raises UsageError for a single file too short to be split."""
        return _split(self.files)

    def describe(self) -> str:
        """Returns one line: name, files, bytes, and the files left out."""
        counts = [f"{count} {reason}" for reason, count in self.left_out]
        left_out = f"; left out: {', '.join(counts)}" if counts else ""
        files = "1 file" if len(self.files) == 1 else f"{len(self.files)} files"
        return f"{self.name}: {files}, {format_bytes(self.nbytes)}{left_out}"


def read_text(path: str | Path, leave_out: str | Path | None = None) -> Corpus:
    """Reads the UTF-8 text of one file, or of all files of a folder and its subfolders.

    In a folder, files that are not text are left out and counted: bytes that are not UTF-8, or a zero byte among them.
    So are empty files, exact copies of an earlier file, links and special files. Hidden files and folders (names that
    begin with ".") and the folder `leave_out` are ignored. A `path` that is itself a link is followed.

    Raises NotAvailable for a path that does not exist or may not be read, UsageError where there is no text at all.
    """
    path = Path(path)
    try:
        mode, name = path.stat().st_mode, path.resolve().name or str(path)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    left_out = Counter[str]()
    if stat.S_ISDIR(mode):
        hidden = None if leave_out is None else Path(leave_out).resolve()
        found = _walk(path, left_out, lambda entry, is_folder: is_folder and Path(entry).resolve() == hidden)
        return _corpus(name, found, left_out, f"there is no UTF-8 text in {path}")
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path} is neither a file nor a folder")
    return _corpus(name, [(name, path)], left_out, f"{path} is empty or not UTF-8 text")


def standard_library() -> Corpus:
    """Returns the Python source of this interpreter's standard library, without its tests and without installed
    packages.

    Files written when Python was built (`_sysconfigdata...`, `config-...`) are left out too: they differ between
    machines of one version. Raises NotAvailable where the standard library is not a folder of files.
    """
    folder = Path(sysconfig.get_path("stdlib"))

    def unwanted(entry: os.DirEntry[str], is_folder: bool) -> bool:
        if is_folder:
            return entry.name in LIBRARY_LEFT_OUT or entry.name.startswith("config-")
        return not entry.name.endswith(".py") or entry.name.startswith("_sysconfigdata")

    missing = f"Python's standard library is not in {folder}; name a text to train on"
    if not folder.is_dir():
        raise NotAvailable(missing)
    left_out = Counter[str]()
    name = f"Python {platform.python_version()} standard library"
    return _corpus(name, _walk(folder, left_out, unwanted), left_out, missing)


def _walk(
    top: Path, left_out: Counter[str], unwanted: Callable[[os.DirEntry[str], bool], bool]
) -> Iterator[tuple[str, Path]]:
    """Yields the name and path of every regular file, in no fixed order. Links are not followed, so no folder is seen
    twice."""
    folders = [("", top)]
    while folders:
        prefix, folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    is_folder = entry.is_dir(follow_symlinks=False)
                    if entry.name.startswith(".") or unwanted(entry, is_folder):
                        continue
                    if is_folder:
                        folders.append((f"{prefix}{entry.name}/", Path(entry.path)))
                    elif entry.is_file(follow_symlinks=False):
                        yield prefix + entry.name, Path(entry.path)
                    else:
                        left_out["links" if entry.is_symlink() else "special files"] += 1
        except OSError as error:
            raise _unreadable(folder, error) from error


def _corpus(name: str, found: Iterable[tuple[str, Path]], left_out: Counter[str], nothing: str) -> Corpus:
    """Returns the corpus of the files that are text, the first by name of equal ones. Raises UsageError with the
    message `nothing` if there are none."""
    files = dict[str, TextFile]()
    for each, path in sorted(found):
        if (file := _listed(each, path)) is None:
            left_out["not UTF-8 text"] += 1
        elif file.size == 0:
            left_out["empty"] += 1
        elif file.digest in files:
            left_out["copies"] += 1
        else:
            files[file.digest] = file
    if not files:
        raise UsageError(nothing)
    return Corpus(name, tuple(files.values()), tuple(sorted(left_out.items())))


def _listed(name: str, path: Path) -> TextFile | None:
    """Returns the file with its hash; None if it is not text. A zero byte is not text: among bytes it separates
    files."""
    digest, decoder, size = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")(), 0
    with _open(path) as file:
        _, modified = _stamp(file.fileno())
        while data := file.read(BLOCK_BYTES):
            try:
                decoder.decode(data)
            except UnicodeDecodeError:
                return None
            if 0 in data:
                return None
            digest.update(data)
            size += len(data)
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return None
    return TextFile(name, path, size, digest.hexdigest(), modified)


def _split(files: tuple[TextFile, ...]) -> Splits:
    """Divides files by `place`, so that adding a file moves no other; at least one is held out and one is not.

    Files are in the order of `place`: the first part of a split is a sample of it. A single file is cut: its end is
    held out. Where no file's place makes it tuning text, that is the end of the largest training piece.
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
    """Returns the piece without about its last `nbytes`, and these bytes. The cut is at the next start of a line, or of
    a character where the line is long. Raises UsageError for a piece that is too short."""
    at = piece.end - max(1, round(nbytes))
    with _open(piece.file.path) as file:
        file.seek(at)
        ahead = file.read(min(piece.end - at, BLOCK_BYTES))
        line = ahead.find(b"\n", 0, (piece.end - at) // 2) + 1
        if line:
            at += line
        else:
            while at > piece.start and ahead[:1] and 0x80 <= ahead[0] < 0xC0:  # inside a character: to its start
                at -= 1
                file.seek(at)
                ahead = file.read(1)
    if not piece.start < at < piece.end:
        size, path = piece.file.size, piece.file.path
        raise UsageError(f"{path} has {size} bytes, too few to keep some for tuning and for held-out text")
    return Piece(piece.file, piece.start, at), Piece(piece.file, at, piece.end)


def _as_bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")  # a file name need not be valid Unicode


def _stamp(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> NotAvailable:
    return NotAvailable(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}")
