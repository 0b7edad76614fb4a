"""python -m benchmarks [VERB]: the costs of the architectures, side by side."""

from benchmarks.commands import make_app
from zoo.cli.runner import run

app = make_app()


def may_report() -> bool:
    """Whether this process prints an error. With several processes, one does."""
    from zoo.core.processes import may_report_error  # here, since it imports torch

    return may_report_error()


if __name__ == "__main__":
    run(app, "python -m benchmarks", may_report=may_report)
