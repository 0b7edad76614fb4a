"""Text files: what is read, what is left out, and how it is split."""

import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.errors import NotAvailable, UsageError
from zoo.training.text import data
from zoo.training.text.data import Corpus, Piece, Splits, read_text, standard_library


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def names(corpus: Corpus) -> list[str]:
    return [file.name for file in corpus.files]


def text(pieces: tuple[Piece, ...]) -> str:
    return "".join(block for piece in pieces for block in piece.blocks())


def whole(splits: Splits, file: str) -> bytes:
    """The pieces of one file in order, which must meet without a gap."""
    pieces = sorted((piece for split in splits for piece in split if piece.file.name == file), key=lambda p: p.start)
    assert pieces[0].start == 0
    assert pieces[-1].end == pieces[-1].file.size
    assert all(one.end == two.start for one, two in pairwise(pieces))
    return text(tuple(pieces)).encode()


def test_a_folder_is_read_without_what_is_not_text(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "texts",
        {
            "b.txt": "two\r\n",
            "a/z.md": "größer 😀\n",
            "a.txt": "one\n",
            "copy/of.txt": "one\n",
            "latin.txt": "größer".encode("latin-1"),
            "cut.txt": "é".encode()[:1],
            "zero.bin": b"text\0text",
            "empty.txt": "",
            ".git/config": "hidden",
            "a/.env": "hidden",
            "out/log.jsonl": "a run's own",
        },
    )
    write(tmp_path / "elsewhere", {"c.txt": "outside\n"})
    (folder / "link.txt").symlink_to(tmp_path / "elsewhere" / "c.txt")
    (folder / "loop").symlink_to(folder)
    (folder / "folder").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(folder / "pipe")
    corpus = read_text(folder, leave_out=folder / "out")
    assert names(corpus) == ["a.txt", "a/z.md", "b.txt"]
    (tmp_path / "named").symlink_to(folder)  # a link that is named is followed
    assert names(read_text(tmp_path / "named", leave_out=folder / "out")) == names(corpus)


@pytest.mark.parametrize("content", [b"", b"\xff", b"a\0b"], ids=["empty", "not UTF-8", "binary"])
@pytest.mark.parametrize("what", ["file", "folder"])
def test_no_text_at_all_is_refused(content: bytes, what: str, tmp_path: Path) -> None:
    write(tmp_path, {"a": content})
    path = tmp_path / "a" if what == "file" else tmp_path
    with pytest.raises(UsageError, match=f"^.*{path}.*$"):
        read_text(path)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotAvailable, match=f"^{tmp_path / 'none'} cannot be read: No such file or directory$"):
        read_text(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="neither a file nor a folder"):
        read_text(tmp_path / "pipe")


@pytest.mark.parametrize("locked", ["inner", "inner/a.txt"])
def test_a_folder_or_file_that_may_not_be_read_is_named(
    locked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read everything, so the system's refusal is put in place of its answer."""
    write(tmp_path, {"inner/a.txt": "one", "b.txt": "two"})
    target, scandir, open_path = tmp_path / locked, os.scandir, Path.open

    def refuse(path: Path) -> None:
        if Path(path) == target:
            raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", lambda path: refuse(path) or scandir(path))
    monkeypatch.setattr(Path, "open", lambda path, *mode: refuse(path) or open_path(path, *mode))
    with pytest.raises(NotAvailable, match=f"^{target} cannot be read: Permission denied$"):
        read_text(tmp_path)


def test_the_hash_is_that_of_names_and_contents(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"a.txt": "one\n" * 50, "b/c.txt": "two\n" * 50}
    first = read_text(write(tmp_path / "1", files)).hash
    assert read_text(write(tmp_path / "2", files)).hash == first
    others = [{**files, "a.txt": "One\n" * 50}, {**files, "d.txt": "three"}, {"b.txt": files["a.txt"]}]
    found = {read_text(write(tmp_path / f"other{i}", each)).hash for i, each in enumerate(others)}
    assert len(found | {first}) == 4


def test_splits_of_many_files(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {f"{i % 7}/{i}.txt": f"text {i}\n" * 3 for i in range(600)}
    splits = read_text(write(tmp_path / "a", files)).splits
    held = {piece.file.name for piece in splits.heldout}
    assert sorted(piece.file.name for split in splits for piece in split) == sorted(files)  # each once, in one split
    assert 0.02 * 600 < len(held) < 0.08 * 600
    assert 0.005 * 600 < len(splits.tuning) < 0.05 * 600
    more = read_text(write(tmp_path / "a", {"new.txt": "new"})).splits  # moves no other file
    assert {piece.file.name for piece in more.heldout} - {"new.txt"} == held


@given(count=st.integers(1, 9), sizes=st.lists(st.integers(20, 3000), min_size=9, max_size=9), line=st.integers(1, 999))
def test_splits_of_few_files_cover_the_text_once(
    count: int, sizes: list[int], line: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def content(i: int) -> str:
        characters = (f"{i}é😀 text" * sizes[i])[: sizes[i]]
        return "\n".join(characters[at : at + line] for at in range(0, len(characters), line))

    files: dict[str, str | bytes] = {f"{i}.txt": content(i) for i in range(count)}
    corpus = read_text(write(tmp_path_factory.mktemp("few"), files))
    assert len(corpus.files) == count
    for split in corpus.splits:
        assert split
        assert all(len(piece) for piece in split)
    for name, expected in files.items():
        assert whole(corpus.splits, name) == str(expected).encode()
    if count > 1:
        held = {piece.file.name for piece in corpus.splits.heldout}
        assert held.isdisjoint(piece.file.name for piece in (*corpus.splits.train, *corpus.splits.tuning))


def test_a_single_file_is_cut_at_lines_near_its_end(tmp_path: Path) -> None:
    lines = [f"line {i}\n" for i in range(5000)]
    splits = read_text(write(tmp_path, {"a.txt": "".join(lines)}) / "a.txt").splits
    parts = [text(split) for split in splits]
    assert "".join(parts) == "".join(lines)
    assert all(part.startswith("line ") and part.endswith("\n") for part in parts)
    shares = [len(part) / sum(map(len, parts)) for part in parts]
    assert shares == pytest.approx([0.925, 0.025, 0.05], abs=0.003)


@pytest.mark.parametrize("content", ["a", "ab", "😀"])
def test_a_file_too_short_to_split_is_refused(content: str, tmp_path: Path) -> None:
    corpus = read_text(write(tmp_path, {"a.txt": content}))
    with pytest.raises(UsageError, match="too few to keep some for tuning and for held-out text"):
        _ = corpus.splits


@given(content=st.text(st.sampled_from("a\né😀\r"), min_size=1, max_size=60), block=st.integers(4, 9))
def test_blocks_are_the_text_whatever_their_size(
    content: str, block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = write(tmp_path_factory.mktemp("blocks"), {"a.txt": content})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "BLOCK_BYTES", block)
        (file,) = read_text(folder).files
        blocks = list(Piece(file, 0, file.size).blocks())
    assert "".join(blocks) == content
    assert all(len(each.encode()) <= 2 * block for each in blocks)


@pytest.mark.parametrize("change", ["longer", "shorter", "same size"])
def test_a_file_that_changes_after_it_was_listed_is_refused(change: str, tmp_path: Path) -> None:
    (file,) = read_text(write(tmp_path, {"a.txt": "one\n" * 99})).files
    file.path.write_text({"longer": "one\n" * 100, "shorter": "one\n", "same size": "two\n" * 99}[change])
    os.utime(file.path, ns=(file.modified, file.modified + (change == "same size")))
    with pytest.raises(UsageError, match="has changed while it was read"):
        list(Piece(file, 0, file.size).blocks())


def test_the_standard_library_is_python_source_of_this_version() -> None:
    corpus = standard_library()
    assert len(corpus.files) > 300
    assert {"os.py", "json/decoder.py"} <= set(names(corpus))
    assert names(corpus) == sorted(names(corpus))
    for file in corpus.files:
        assert file.name.endswith(".py")
        assert data.LIBRARY_LEFT_OUT.isdisjoint(file.name.split("/"))
        assert not file.path.is_symlink()
    assert len({file.digest for file in corpus.files}) == len(corpus.files)
    assert "standard library" in corpus.name
    assert standard_library().hash == corpus.hash
    assert 0.02 < len(corpus.splits.heldout) / len(corpus.files) < 0.09


def test_a_python_without_its_source_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "python311.zip"))
    with pytest.raises(NotAvailable, match="name a text to train on"):
        standard_library()
