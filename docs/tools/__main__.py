"""python -m docs.tools: regenerates parts of docs/ from the code and from the samples in docs/.

python -m docs.tools --processor SLUG FILE ...   first stores files of `throughput --json` as a processor's samples
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.output.report import DOCS
from docs.tools import performance
from docs.tools.pages import texts
from zoo.errors import ZooError


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m docs.tools", description="Writes the generated parts of docs/.")
    processor = "processor whose samples the files become, such as amd-epyc-avx512"
    parser.add_argument("--processor", metavar="SLUG", help=processor)
    parser.add_argument(
        "files", metavar="FILE", nargs="*", type=Path, help="files of python -m benchmarks throughput --json"
    )
    asked = parser.parse_args(arguments)
    if (asked.processor is None) != (not asked.files):
        parser.error("--processor SLUG and FILE ... go together")
    try:
        if asked.processor is not None:
            performance.keep(asked.processor, asked.files)
        for name, text in texts().items():
            (DOCS / name).write_text(text, encoding="utf-8")
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
