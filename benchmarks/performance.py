"""docs/performance.md: a section for each processor, from the samples in docs/performance/<slug>.json.

python -m benchmarks.performance                            write the page anew
python -m benchmarks.performance --processor SLUG FILE ...  first gather files of `throughput --json --out FILE` there

What stands between a section's markers is generated. All else on the page is written by hand and stays.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure.environment import merged
from benchmarks.output.performance_section import Row, key_of, section
from zoo.errors import MalformedError, NotAvailable, ZooError

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
FOLDER = PAGE.with_suffix("")
EARLIER = "before"  # samples of the zoo before it was made fast: kept, without a section
SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
END = "<!-- end -->"
BLOCK = re.compile(r"<!-- measured: (\S+) -->\n.*?<!-- end -->\n", re.DOTALL)
SAME = ("cpu", "isa", "cores", "torch", "device")  # of the machine: what all documents of a processor share


def kept(folder: Path = FOLDER) -> dict[str, Path]:
    """The samples that come with the repository: slug of the processor -> file."""
    return {file.stem: file for file in sorted(folder.glob("*.json")) if file.stem != EARLIER}


def gather(files: Sequence[Path]) -> Row:
    """One document of several that were measured on the same processor: all their rows, under the first one's facts.

    A test that several files hold is the last one's: its rounds belong together. Raises NotAvailable for a file that
    cannot be read, MalformedError for one that is no such document or is of another processor.
    """
    documents = [_read(file) for file in files]
    first = documents[0]
    for file, document in zip(files, documents, strict=True):
        for fact in SAME:
            if document["machine"].get(fact) != first["machine"].get(fact):
                raise MalformedError(
                    f"{file}: {fact} is {document['machine'].get(fact)}, and {first['machine'].get(fact)} in {files[0]}"
                )
    last = {key_of(row): n for n, document in enumerate(documents) for row in document["rows"] if _is_speed(row)}
    rows = [
        row
        for n, document in enumerate(documents)
        for row in document["rows"]
        if not _is_speed(row) or last[key_of(row)] == n
    ]
    return first | {
        "machine": first["machine"] | _kernels([document["machine"] for document in documents]),
        "complete": all(document.get("complete", True) for document in documents),
        "rows": rows,
    }


def _is_speed(row: Row) -> bool:
    return bool(row["table"] == "throughput")


def _kernels(machines: Sequence[Row]) -> Row:
    """The choices of all processes; nothing where none was recorded."""
    recorded = [machine for machine in machines if "kernels" in machine]
    if not recorded:
        return {}
    settings = {machine.get("kernels_set") for machine in recorded}
    if len(settings) > 1:
        raise MalformedError(f"the files were measured with different ZOO_KERNELS: {', '.join(map(str, settings))}")
    return {"kernels": merged(machine["kernels"] for machine in recorded), "kernels_set": settings.pop()}


def _read(file: Path) -> Row:
    try:
        document: Row = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(document["machine"], dict) and all("table" in row for row in document["rows"]):
            return document
    except (OSError, UnicodeDecodeError) as error:
        raise NotAvailable(f"cannot read {file}: {getattr(error, 'strerror', None) or 'it is not text'}") from error
    except (ValueError, TypeError, KeyError):
        pass
    raise MalformedError(f"{file}: not a document of python -m benchmarks throughput --json")


def page(text: str, documents: dict[str, Row]) -> str:
    """The page with a generated section for each document, by slug.

    A section stays where its markers are; a new one follows the last; one without a document goes.
    """
    made = {slug: f"{_begin(slug)}\n{section(slug, document)}\n\n{END}\n" for slug, document in documents.items()}
    text = BLOCK.sub(lambda found: made.get(found[1], ""), text)
    for slug, block in made.items():
        if f"{_begin(slug)}\n" not in text:
            before, end, after = text.rpartition(f"{END}\n")
            text = f"{before}{end}\n{block}{after}" if end else f"{text.rstrip()}\n\n{block}"
    return text


def _begin(slug: str) -> str:
    return f"<!-- measured: {slug} -->"


def write(slug: str | None, files: Sequence[Path], page_file: Path = PAGE, folder: Path = FOLDER) -> None:
    """Gather the files as the samples of a processor, if there are any, and write the page."""
    if slug is not None:
        text = json.dumps(gather(files), indent=1)
        folder.mkdir(exist_ok=True)
        (folder / f"{slug}.json").write_text(text + "\n", encoding="utf-8")
    documents = {name: _read(file) for name, file in kept(folder).items()}
    page_file.write_text(page(page_file.read_text(encoding="utf-8"), documents), encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.performance", description="Write docs/performance.md.")
    parser.add_argument(
        "--processor", metavar="SLUG", help="such as amd-epyc-avx512: the files' rows become its samples"
    )
    parser.add_argument("files", metavar="FILE", nargs="*", type=Path, help="of python -m benchmarks throughput --json")
    asked = parser.parse_args(arguments)
    if (asked.processor is None) != (not asked.files):
        parser.error("--processor SLUG and FILE ... go together")
    if asked.processor is not None and (asked.processor == EARLIER or not SLUG.fullmatch(asked.processor)):
        parser.error(f"--processor {asked.processor}: must be lower-case words joined by -, such as amd-epyc-avx512")
    try:
        write(asked.processor, asked.files, PAGE, FOLDER)
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
