"""The command `zoo`: `zoo build qwen3` runs `python -m zoo.build qwen3`. Nothing imports this file.

It imports the project only once the verb is known, so that `zoo` without a verb answers at once.
"""

import os
import runpy
import sys

MODULES = {
    "build": ("zoo.build", "a model's blocks and costs; with --tiny, a run of it"),
    "train": ("zoo.train", "trains a model on text"),
    "bench": ("benchmarks", "tables and measurements: zoo bench VERB"),
    "generate": ("weights.generate", "continues a prompt with a released model"),
    "parity": ("weights.parity", "compares a model with its released implementation"),
    "kernels": ("zoo.kernels", "the fastest kernels of this machine"),
}
HELP = """Usage: zoo VERB ...

Open large language model architectures, side by side.
A verb starts a module, as `python -m MODULE` does.
"""


def main() -> int:
    """Runs the given verb, which ends the process with its exit code. Returns 2 for an unknown verb."""
    verb, *args = sys.argv[1:] or ["--help"]
    if verb in MODULES:
        _run_as_module(MODULES[verb][0], f"zoo {verb}", args)
        return 0
    if verb in ("--help", "-h"):
        return _print_help()
    print(f"error: unknown verb {verb!r}; the verbs are {', '.join(MODULES)}", file=sys.stderr)
    return 2


def _run_as_module(module: str, typed_as: str, args: list[str]) -> None:
    """Runs a module as `python -m` does: with its arguments, as `__main__`, and with the same response to Ctrl-C.

    `zoo.cli.interrupt` recognises a command by sys.argv and sys.orig_argv; `zoo.cli.runner` shows `typed_as`.
    """
    sys.argv[:] = ["-m", *args]
    sys.orig_argv[:] = [sys.executable, "-m", module, *args]
    from zoo.cli import interrupt  # noqa: F401 - before torch, which some modules import before the zoo

    runpy.run_module(module, init_globals={"typed_as": typed_as}, run_name="__main__", alter_sys=True)


def _print_help() -> int:
    rows = [f"  {verb:9} {module:17} {summary}" for verb, (module, summary) in MODULES.items()]
    try:
        print(HELP, *rows, "\n`zoo VERB --help` lists the options of a verb.", sep="\n", flush=True)
    except BrokenPipeError:  # the reader, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
