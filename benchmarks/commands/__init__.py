"""The verbs of `python -m benchmarks`: each file is a verb, with its `command` and the tables that it shows.

The folder is scanned, so a new file is a new verb. `all` shows the tables of several verbs. MAIN is the default verb.
"""

from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from importlib import import_module
from itertools import pairwise
from pkgutil import iter_modules
from typing import Any

import typer
from typer.core import TyperGroup

from benchmarks.analytic.models import one
from benchmarks.analytic.params import cost_row
from benchmarks.commands import costs, flops, kv, params
from benchmarks.options import MEMORY, Contexts, DeviceOptions, InferenceOptions, Memory, ModelOptions, with_groups
from benchmarks.output.report import Report
from zoo.catalog import names
from zoo.errors import UsageError

MAIN = "costs"
MOVED = {name: f"blocks --variants {name}" for name in ("mla", "sparse")}  # verbs of earlier versions
HELP = f"""The costs of language model architectures, side by side.

Without a verb, {MAIN} runs. Each verb has its own --help.

\b
python -m benchmarks gpt-oss qwen3-8b --static
python -m benchmarks --static --since 2025-04 --with MoE
python -m benchmarks kv --context 128k --memory 24GiB
python -m benchmarks compare llama3.1-8b gemma3-27b
python -m benchmarks throughput qwen3-0.6b -d 0 -d 4096
"""


def verbs() -> dict[str, Callable[..., None]]:
    """Returns the function of each verb: `all`, and the `command` of each file of this folder, by the file's name."""
    files = sorted(info.name for info in iter_modules(__path__))
    return {"all": every_table} | {name: import_module(f"{__name__}.{name}").command for name in files}


def every_table(
    *,
    context: Contexts = None,
    inference: InferenceOptions,
    peak: DeviceOptions,
    memory: Memory = MEMORY,
    models: ModelOptions,
    report: Report,
) -> None:
    """All unmeasured tables: costs, params, kv and flops.

    Without --context, each table uses the default contexts of its verb.
    """
    chosen, device, against = models.chosen(), peak.device(), one(kv.AGAINST)
    report.add(*costs.static_tables([*map(cost_row, chosen)]))
    report.add(*params.tables(chosen))
    report.add(*kv.tables(chosen, context or [kv.DEFAULT_CONTEXT], against, memory, inference))
    for tokens in context or [flops.DEFAULT_CONTEXT]:
        report.add(*flops.tables(chosen, tokens, inference, device))


class Verbs(TyperGroup):
    """A group of commands that runs MAIN if no verb is given."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Inserts MAIN if the arguments do not begin with a verb.

        Raises UsageError for a misspelt, misplaced or moved verb.
        """
        if args and args[0] in (*self.commands, "--help"):
            return super().parse_args(ctx, args)
        if args and args[0] in MOVED:
            raise UsageError(f"the verb {args[0]} is now: python -m benchmarks {MOVED[args[0]]}")
        if late := next((word for word in self._without_values(args) if word in self.commands), None):
            raise UsageError(f"the verb comes first: python -m benchmarks {late} ...")
        if args and args[0] not in names() and (close := get_close_matches(args[0], self.commands, n=1, cutoff=0.75)):
            raise UsageError(f"unknown verb or model {args[0]!r}; did you mean {close[0]}?")
        return super().parse_args(ctx, [MAIN, *args])

    def _without_values(self, args: Sequence[str]) -> Iterator[str]:
        """Returns the arguments without the values of MAIN's options, so that `mla` in `--with mla` is not taken for a
        verb."""
        options = {
            name for each in self.commands[MAIN].params if not getattr(each, "is_flag", True) for name in each.opts
        }
        return (word for before, word in pairwise(["", *args]) if before not in options)


def make_app() -> typer.Typer:
    """Returns the command line, with every verb of this folder."""
    app = typer.Typer(add_completion=False, cls=Verbs, help=HELP, rich_markup_mode=None)
    for name, command in verbs().items():
        app.command(name)(with_groups(command))
    return app
