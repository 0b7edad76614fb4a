"""Documents written by `--json`: those that come with the repository, and files that a reader names."""

import json
from pathlib import Path

from zoo.cli.tables import SCHEMA_VERSION, Row
from zoo.errors import MalformedError, NotAvailable

DOCS = Path(__file__).resolve().parents[2] / "docs"  # exists in a checkout, not in an installed package


def kept(folder: Path) -> dict[str, Path]:
    """Returns the documents of a folder, by name without the suffix."""
    return {file.stem: file for file in sorted(folder.glob("*.json"))}


def read(file: Path, verb: str = "throughput") -> Row:
    """Reads a document of `python -m benchmarks VERB --json`.

    Raises NotAvailable for a file that cannot be read, MalformedError for another document and for another schema
    version.
    """
    wrong = f"{file}: not a document of python -m benchmarks {verb} --json"
    try:
        document: Row = json.loads(file.read_text(encoding="utf-8"))
        version = document["schema_version"]
        if not isinstance(document["machine"], dict) or not all("table" in row for row in document["rows"]):
            raise MalformedError(wrong)
    except (OSError, UnicodeDecodeError) as error:
        raise NotAvailable(f"cannot read {file}: {getattr(error, 'strerror', None) or 'it is not text'}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise MalformedError(wrong) from error
    if version != SCHEMA_VERSION:
        author = f"{'an older' if version == 1 else 'another'} version (schema_version {version})"
        raise MalformedError(f"{file}: written by {author}; this version reads {SCHEMA_VERSION}")
    return document
