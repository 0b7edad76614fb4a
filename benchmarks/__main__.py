"""python -m benchmarks [VERB]: the costs of the architectures, side by side."""

from benchmarks.commands import make_app
from zoo.cli.runner import run

app = make_app()

if __name__ == "__main__":
    run(app, "python -m benchmarks")
