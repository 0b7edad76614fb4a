"""python -m zoo.train MODEL: trains a model on text, from fresh weights or from a checkpoint."""

import logging
import os
import sys
from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from functools import cached_property, partial
from math import ceil
from pathlib import Path
from shutil import copyfile
from time import perf_counter
from typing import Annotated, Any

import torch
import typer

from weights.loading import fill, open_source
from weights.matching import Source
from weights.saving import save
from weights.sources import SAVED, is_path
from weights.specs import PYTHON, find_spec
from weights.tokenizer import TOKENIZER, Text
from zoo import catalog
from zoo.architectures import families
from zoo.cli.card import full_sizes_warning
from zoo.cli.runner import Debug, Imports, emit, run
from zoo.cli.training import minutes as in_minutes
from zoo.cli.training import shown, summary
from zoo.core import kernels, processes
from zoo.core.devices import free_memory, machine
from zoo.errors import NotAvailable, SpecError, UsageError, ZooError
from zoo.model.decoder import Decoder
from zoo.model.module import Model
from zoo.new_files import new_folder
from zoo.spec_files import from_state, spec_from
from zoo.swaps.tiny import tiny
from zoo.training import distributed
from zoo.training.checkpoints import (
    CHECKPOINTS,
    STATE,
    best_checkpoint,
    last_checkpoint,
    locked,
    read_state,
    remove_leftovers,
)
from zoo.training.loop import Trainer
from zoo.training.material import Material
from zoo.training.options import PUBLISHED, Options
from zoo.training.run import (
    EVALUATIONS,
    LOG,
    Run,
    choose_threads,
    evaluation,
    matmul_rate,
    same_sums,
    seconds,
    steps_within,
    time_steps,
    training_flops_per_token,
)
from zoo.units import format_bytes, format_count, parse_count

BYTES_PER_PARAMETER = 16  # weight, gradient and two moments of AdamW, all in float32
app = typer.Typer(add_completion=False, rich_markup_mode=None)
Flag = bool | None


class Schedule(StrEnum):
    """The learning rate after the warm-up: half a cosine, or constant with a linear decay at the end (wsd)."""

    cosine = "cosine"
    wsd = "wsd"


@app.command()
def main(
    call: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A size, an architecture, or another model: see zoo.build.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the run; it must not hold another run.")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(metavar="FILE_OR_FOLDER", help="Training text in UTF-8. Default: Python's standard library."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out with its options.")] = False,
    params: Annotated[
        str | None, typer.Option(help="Number of parameters to scale to, or 'published' to keep the size. Default: 1M.")
    ] = None,
    tiny: Annotated[Flag, typer.Option("--tiny", help="Use toy widths instead of --params.")] = None,
    swap: Annotated[
        list[str] | None, typer.Option(metavar="SWAP", help="Change a block, as in zoo.build (repeatable).")
    ] = None,
    source: Annotated[
        str | None, typer.Option("--from", metavar="SOURCE", help="Released model or finished run to start from.")
    ] = None,
    vocab: Annotated[
        int | None, typer.Option(min=1, help="Vocabulary size of a BPE tokenizer to train. Default: bytes as tokens.")
    ] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Tokens per sequence. Default: 256.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Sequences per step. Default: 8.")] = None,
    accumulate: Annotated[
        int | None, typer.Option(min=1, help="Micro-batches per step (gradient accumulation). Default: 1.")
    ] = None,
    tokens: Annotated[str | None, typer.Option(help="Budget in tokens, such as 600k or 2M.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Budget in minutes, instead of tokens. Default: 10.")] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Peak learning rate. Default: 4e-3; 3e-4 with --params published from 20M on; 1e-4 with --from."
        ),
    ] = None,
    schedule: Annotated[Schedule | None, typer.Option(help="Learning rate after the warm-up. Default: cosine.")] = None,
    warmup: Annotated[
        float | None, typer.Option(min=0, help="Warm-up steps; a value below 1 is a share of all steps. Default: 0.1.")
    ] = None,
    clip: Annotated[float | None, typer.Option(help="Maximum norm of the gradient (0: no limit). Default: 1.")] = None,
    weight_decay: Annotated[float | None, typer.Option(min=0, help="Weight decay of matrices. Default: 0.1.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**63 - 1, help="Seed of weights and batches. Default: 0.")
    ] = None,
    device: Annotated[str, typer.Option(help="Device: cpu, cuda, cuda:1, mps; under torchrun cpu or cuda.")] = "cpu",
    autocast: Annotated[Flag, typer.Option("--autocast", help="Compute in bfloat16.")] = None,
    compile: Annotated[Flag, typer.Option("--compile", help="Compile the model with torch.compile.")] = None,
    checkpoint_activations: Annotated[
        Flag, typer.Option("--checkpoint-activations", help="Save memory: recompute layers in the backward pass.")
    ] = None,
    eval_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between evaluations. Default: ten evaluations in all.")
    ] = None,
    sample: Annotated[str | None, typer.Option(metavar="PROMPT", help="Prompt of generated samples.")] = None,
    import_: Imports = None,
    debug: Debug = False,
) -> None:
    """Train a model on text; the run, its log, its checkpoints and the model go to --out.

    Progress and samples go to stderr, a summary to stdout. An interrupted run continues with --out FOLDER --resume.

    \b
    python -m zoo.train qwen3 --out run
    python -m zoo.train gemma3 --text notes/ --vocab 2048 --minutes 30 --out run
    python -m zoo.train --out run --resume
    torchrun --nproc-per-node 2 -m zoo.train qwen3 --out run --device cuda
    python -m weights.generate run/model "import "
    """
    began = perf_counter()
    logging.basicConfig(format="%(message)s")
    if not kernels.active().is_set:
        kernels.use(kernels.PLAIN)  # a run computes the same after --resume, even on another machine
    if compile and processes.is_launched():
        raise UsageError("--compile is for one process: the layers of a sharded model have hooks and run uncompiled")
    if out is None:
        raise UsageError("a run needs a new folder: --out run")
    names = {each.name for each in fields(Options)}
    given = {name: value for name, value in call.params.items() if name in names and value not in (None, ())}
    given |= {"text": str(text.absolute())} if text else {}
    given |= {"swap": tuple(swap)} if swap else {}
    if name is not None and (PYTHON in name or is_path(name)):
        if source is not None:
            raise UsageError("--from already names the model: leave MODEL or --from out")
        given["name"] = str(Path(name).absolute())  # absolute, since --resume may run in another folder
    given |= {"tokens": _count("--tokens", tokens)} if tokens is not None else {}
    if params is not None and params != PUBLISHED:
        _count("--params", params)
    if resume and not {"name", "source"} & set(given) and last_checkpoint(out) is None:
        raise UsageError(
            f"{out} holds no checkpoint to resume" if out.is_dir() else f"there is no folder {out} to resume"
        )
    with (
        processes.joined(device, "; resume from its checkpoints") as place,
        nullcontext() if processes.rank() else locked(out),
    ):
        last = processes.from_first(lambda: _checkpoint(out, resume, given))
        if last:
            state = read_state(Path(last))
            options = Options.resumed(given, state.get("options"))
            try:
                session = _session(options, place, saves=not (out / SAVED).exists())
            except UsageError:
                spec_from(from_state(state), str(Path(last) / STATE))  # says which module to --import, if any
                raise
            training = _resumed(out, session, Path(last), state, check_text="text" in given)
        else:
            session = _session(Options.fresh(given), place, is_new=True)
            training = _started(out, session, began)
        _train(training, session)


@dataclass(frozen=True)
class Session:
    """The options of a run, its device, the spec of its model, and the source of its first weights (if any)."""

    options: Options
    place: torch.device
    spec: Decoder
    opened: Source | None

    @cached_property
    def rate(self) -> float:
        """The FLOPs per second of a matrix product, summed over all processes."""
        dtype = torch.bfloat16 if self.options.autocast else torch.float32
        return processes.ranks() * processes.from_first(lambda: matmul_rate(self.place, dtype))

    @property
    def flops_per_token(self) -> float:
        """The FLOPs per token of training, including the backward pass."""
        return training_flops_per_token(self.spec, self.options.context)

    def require_time(self, began: float, step: float | None = None) -> None:
        """Raises UsageError if the rest of --minutes, counted from `began`, is too short for one step. The first of
        several processes decides for all.

        `step`: the seconds that a step takes. By default they are estimated from the measured `rate`.
        """
        if self.options.minutes is None:
            return
        budget = 60 * self.options.minutes
        least = step or self.options.batch * self.options.context * self.flops_per_token / self.rate
        left, least = processes.from_first(lambda: (budget - (perf_counter() - began), least))
        if left < least:
            steps_within(left, least, least, self.options.eval_every)

    def build(self, fresh: bool = True) -> Model:
        """Returns the model, set up by the options. It has its initial weights if `fresh`, else uninitialised ones."""
        options = self.options
        if processes.ranks() > 1:
            first = partial(self._fresh, torch.device("cpu")) if fresh else None
            model = distributed.sharded(self.spec, self.place, first)
        else:
            model = self._fresh(self.place) if fresh else catalog.allocate(self.spec, self.place)
        model.activation_checkpointing = options.checkpoint_activations
        if options.compile and processes.ranks() > 1:
            _say("note: the run was compiled before; several processes run it uncompiled")
        elif options.compile:
            model.compile()
        return model

    def _fresh(self, place: torch.device) -> Model:
        if self.opened is not None:
            return fill(self.spec, self.opened, place, "float32")
        return catalog.build(self.spec, device=place, seed=self.options.seed)

    def save(self, out: Path, model: Model | None) -> None:
        """Saves the trained model and its tokenizer files, for `weights.load` and `weights.generate`. A process without
        the model (None) saves nothing."""
        if model is None:
            return
        if self.opened is not None:
            model.generation, model.text = self.opened.generation, Text(self.opened.text_path)
        with new_folder(out / SAVED, "the model ") as fresh:
            save(model, fresh)
            copyfile(out / TOKENIZER, fresh / TOKENIZER)


def _checkpoint(out: Path, resume: bool, given: dict[str, Any]) -> str | None:
    """Returns the path of the last checkpoint of the run in a folder, or None for a new run. Raises UsageError if the
    folder holds a run but `resume` is not set, or if there is nothing to resume."""
    remove_leftovers(out / CHECKPOINTS)
    remove_leftovers(out, SAVED)
    last = last_checkpoint(out)
    if last is None and (there := next((out / name for name in (LOG, SAVED) if (out / name).exists()), None)):
        raise UsageError(f"{there} exists, but the run has no checkpoint: give another folder, or remove it")
    if last is not None and not resume:
        raise UsageError(f"{out} holds a run, and nothing is overwritten: go on with --resume, or give another folder")
    if last is None and resume:
        _say(f"{out} holds no checkpoint yet: the run starts from the beginning")
    return str(last) if last else None


def _started(out: Path, session: Session, began: float) -> Run:
    """Returns a new run. Its number of steps follows from the budget."""
    options, spec = session.options, session.spec
    if _may_choose_threads(session.place):
        most = torch.get_num_threads()
        threads, times = choose_threads()
        if threads < most:
            _say(f"note: {threads} of {most} threads, {times:.1f} times as fast as all; OMP_NUM_THREADS sets a number")
    source = session.opened.folder if session.opened else None
    if session.opened and session.opened.text_path.is_file():
        source = out  # with the tokenizer of the .gguf file
        if processes.rank() == 0:
            Text(session.opened.text_path).save(out)
    session.require_time(began)
    data = processes.from_first(lambda: Material.make(options, out, source).facts)
    material = Material.find(data, out, options)
    tokens = material.tokens
    _say(f"text: {tokens.name}, {format_count(len(tokens.train))} tokens ({tokens.tokenizer}), hash {tokens.hash}")
    if tokens.vocab > spec.vocab:
        raise UsageError(f"the tokenizer has {tokens.vocab} tokens, and the model's vocabulary is {spec.vocab}")
    session.require_time(began)
    model = session.build()
    rehearsal = Trainer(model, replace(options, warmup=0.0).config(1))
    step = time_steps(rehearsal, material.batch, 60 * (options.minutes or 0.0))
    session.require_time(began, step)
    evaluates = seconds(partial(evaluation, model, material), session.place)
    steps, every = processes.from_first(lambda: _budget(options, step, evaluates, perf_counter() - began))
    trainer = Trainer(model, options.config(steps))
    took = in_minutes(steps * step + (steps / every + 1) * evaluates)
    each = trainer.config.tokens_per_step
    _say(
        f"{format_count(spec.params())} parameters on {session.place}: {_steps(steps)} of {each:,} tokens, about {took}"
    )
    _say(f"learning rate: {options.lr:g} at its peak")
    if options.tokens is not None and options.tokens < each:
        _say(f"note: the budget of {options.tokens:,} tokens is less than one step, which is trained")
    return Run(out, trainer, replace(material, options=replace(options, eval_every=every)))


def _budget(options: Options, step: float, evaluation: float, spent: float) -> tuple[int, int]:
    """Returns the number of steps of a run, and the number of steps between evaluations."""
    if options.minutes is not None:
        return steps_within(60 * options.minutes - spent, step, evaluation, options.eval_every)
    steps = ceil((options.tokens or 0) / (options.batch * options.context))
    return steps, options.eval_every or max(1, round(steps / EVALUATIONS))


def _resumed(out: Path, session: Session, last: Path, state: dict[str, Any], check_text: bool) -> Run:
    """Returns the run in a folder, restored from the checkpoint `last`."""
    material = Material.find(state["data"], out, session.options, check_text)
    recorded = state.get("machine", {})
    if _may_choose_threads(session.place) and recorded.get("cpu") == machine()["cpu"]:
        torch.set_num_threads(min(torch.get_num_threads(), recorded.get("threads", torch.get_num_threads())))
    trainer = Trainer(session.build(fresh=False), session.options.config(state["config"]["steps"]))
    training = Run(out, trainer, material)
    training.restore(last, state)
    _say(f"resumed after step {trainer.step:,} of {trainer.config.steps:,}")
    if not same_sums(state):
        _say(
            "note: threads, processes or kernels differ from before: losses differ in the last digits from those of an "
            "uninterrupted run"
        )
    return training


def _may_choose_threads(place: torch.device) -> bool:
    return place.type == "cpu" and processes.ranks() == 1 and "OMP_NUM_THREADS" not in os.environ


def _steps(steps: int) -> str:
    return f"{steps:,} step{'s' * (steps != 1)}"


def _session(options: Options, place: torch.device, is_new: bool = False, saves: bool = True) -> Session:
    """Returns the session for these options. Reports dropped features. If the run still `saves` its model, reports a
    model that no published config can describe. If the run `is_new`, warns of full sizes in a toy model."""
    opened = None
    if options.source is not None:
        opened = open_source(options.source)
        spec, dropped = opened.spec(), list[str]()
    else:
        assert options.name is not None
        full = find_spec(options.name).spec
        spec, dropped = options.fresh_spec(full)
        if is_new and options.tiny and (warning := full_sizes_warning(spec, tiny(full))):
            _say(warning)
    options = options.with_rate(spec.params())
    if dropped:
        _say(f"dropped: {', '.join(dropped)}")
    try:
        config = catalog.to_hf(spec)
    except SpecError:
        if saves:
            _say("note: saved in the zoo's own layout: no published config describes this model")
        config = None
    if opened is not None and options.name is not None:
        family = next(each for each in families().values() if catalog.resolve(options.name) in each.SIZES)
        if config is None or family.from_hf is not catalog.family_of(config).from_hf:
            raise UsageError(f"{options.source} is not a {options.name}; leave the name out")
    devices = processes.ranks() if place.type == "cuda" else 1  # processes share the memory of a CPU
    needed, free = BYTES_PER_PARAMETER * spec.params() // devices, free_memory(place)
    if free is not None and needed > free:
        raise NotAvailable(
            f"training {format_count(spec.params())} parameters needs {format_bytes(needed)} on {place} and more for "
            f"activations, and {format_bytes(free)} is free; --params scales the model down"
        )
    return Session(options, place, spec, opened)


def _train(training: Run, session: Session) -> None:
    """Trains to the end, saves the model, and prints a summary."""
    trainer, out = training.trainer, training.folder
    flops, rate = session.flops_per_token, session.rate
    rows = training.steps()
    try:
        row = deque(rows if processes.rank() else shown(rows, trainer.config.steps, flops, rate), maxlen=1)[0]
        if processes.from_first(lambda: not (out / SAVED).exists()):
            session.save(out, distributed.whole_model(trainer.model))
    except KeyboardInterrupt:
        _say(f"the last checkpoint is {last_checkpoint(out)}; go on with: python -m zoo.train --out {out} --resume")
        raise
    except ZooError as error:
        raise type(error)(f"{error}; the last checkpoint is {last_checkpoint(out)}") from error
    if processes.rank() == 0:
        emit(summary(_figures(training, session, row, flops / rate)))


def _figures(training: Run, session: Session, row: dict[str, Any], seconds_per_token: float) -> dict[str, str]:
    """Returns the rows of the summary. `seconds_per_token` is the time of a token at the measured FLOPs per second."""
    config, data, out = training.trainer.config, training.material.facts, training.folder
    tokens = config.steps * config.tokens_per_step
    best = best_checkpoint(out / CHECKPOINTS)
    assert best is not None  # the last step is always evaluated
    lowest = read_state(best)["bits_per_byte"]
    speed = tokens / training.seconds if training.seconds else 0.0
    spec = session.spec
    return {
        "model": f"{format_count(spec.params())} parameters, {format_count(spec.active_params())} active",
        "text": f"{data['name']}, hash {data['hash']}",
        "learning rate": f"{config.learning_rate:g} at its peak",
        "trained": f"{_steps(config.steps)}, {format_count(tokens)} tokens in {in_minutes(training.seconds)}",
        "speed": f"{format_count(speed)} tokens/s, MFU {min(1.0, speed * seconds_per_token):.0%}",
        "held out": f"{row['bits_per_byte']:.3f} bits per byte, best {lowest:.3f} in {best.name}",
        "log": str(out / LOG),
        "saved": str(out / SAVED),
    }


def _say(text: str) -> None:
    if processes.rank() == 0:
        print(text, file=sys.stderr)


def _count(option: str, text: str) -> int:
    try:
        return parse_count(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from error


if __name__ == "__main__":
    run(app, "python -m zoo.train")
