"""python -m zoo.train NAME: trains a model on text, from fresh weights or from a checkpoint."""

import logging
import sys
from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
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
from weights.tokenizer import OLDER_TEMPLATE, TEMPLATE, TOKENIZER, TOKENIZER_CONFIG
from zoo import catalog
from zoo.architectures import families
from zoo.cli.runner import Debug, emit, run
from zoo.cli.training import minutes, shown, summary
from zoo.core import kernels, processes
from zoo.core.devices import free_memory
from zoo.errors import NotAvailable, SpecError, UsageError, ZooError
from zoo.model.decoder import Decoder
from zoo.model.module import Model
from zoo.new_files import new_folder
from zoo.training import distributed
from zoo.training.checkpoints import best_checkpoint, read_state, remove_leftovers
from zoo.training.fresh_spec import fresh_spec
from zoo.training.locking import locked
from zoo.training.loop import Trainer
from zoo.training.material import described, find_tokens, make_tokens, material
from zoo.training.options import PUBLISHED, Options
from zoo.training.run import CHECKPOINTS, LOG, Run, facts, last_checkpoint, same_sums, time_steps
from zoo.training.speed import EVALUATIONS, matmul_rate, seconds, steps_within, training_flops_per_token
from zoo.units import format_bytes, format_count, parse_count

BYTES_PER_PARAMETER = 16  # weight, gradient and AdamW's two moments, in float32
# Files of a source's folder for reading and writing text.
TEXT_FILES = (TOKENIZER, TOKENIZER_CONFIG, TEMPLATE, OLDER_TEMPLATE, "generation_config.json")
CONFIG = "config.json"
SAVED = "model"  # the folder in OUT that `weights.load` reads
app = typer.Typer(add_completion=False, rich_markup_mode=None)
Flag = bool | None


class Schedule(StrEnum):
    """The shape of the learning rate after warm-up: half a cosine, or a constant rate that decays at the end (wsd)."""

    cosine = "cosine"
    wsd = "wsd"


@app.command()
def main(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A size or an architecture.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the run; it must not hold another run.")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(metavar="FILE_OR_FOLDER", help="Training text in UTF-8. Default: Python's standard library."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out with its options.")] = False,
    params: Annotated[
        str | None, typer.Option(help="Parameters to scale to; 'published' keeps the size. Default: 1M.")
    ] = None,
    tiny: Annotated[Flag, typer.Option("--tiny", help="Use toy widths instead of --params.")] = None,
    swap: Annotated[
        list[str] | None, typer.Option(metavar="SWAP", help="Change a block, as in zoo.build (repeatable).")
    ] = None,
    source: Annotated[
        str | None, typer.Option("--from", metavar="SOURCE", help="Released model or finished run to start from.")
    ] = None,
    vocab: Annotated[int | None, typer.Option(min=1, help="Tokens of a BPE to train. Default: bytes.")] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Tokens per sequence. Default: 256.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Sequences per step. Default: 8.")] = None,
    accumulate: Annotated[
        int | None, typer.Option(min=1, help="Pieces that a step is computed in. Default: 1.")
    ] = None,
    tokens: Annotated[str | None, typer.Option(help="Budget in tokens: 600k, 2M.")] = None,
    minutes_: Annotated[
        float | None, typer.Option("--minutes", help="Budget in minutes, instead of tokens. Default: 10.")
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Peak learning rate. Default: 4e-3; published sizes 3e-4; with --from 1e-4."),
    ] = None,
    schedule: Annotated[Schedule | None, typer.Option(help="Shape of the learning rate. Default: cosine.")] = None,
    warmup: Annotated[
        float | None, typer.Option(min=0, help="Warm-up steps, or their share below 1. Default: 0.1.")
    ] = None,
    clip: Annotated[float | None, typer.Option(help="Maximum norm of the gradient. Default: 1.")] = None,
    weight_decay: Annotated[float | None, typer.Option(min=0, help="Weight decay of matrices. Default: 0.1.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**63 - 1, help="Seed of weights and batches. Default: 0.")
    ] = None,
    device: Annotated[str, typer.Option(help="Device: cpu, cuda, cuda:1, mps; under torchrun cpu or cuda.")] = "cpu",
    autocast: Annotated[Flag, typer.Option("--autocast", help="Compute in bfloat16.")] = None,
    compile: Annotated[Flag, typer.Option("--compile", help="Compile the model first.")] = None,
    checkpoint_activations: Annotated[
        Flag, typer.Option("--checkpoint-activations", help="Save memory: recompute layers in the backward pass.")
    ] = None,
    eval_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between two evaluations. Default: ten evaluations.")
    ] = None,
    sample: Annotated[str | None, typer.Option(metavar="PROMPT", help="Prompt of the samples.")] = None,
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
        kernels.use(kernels.PLAIN)  # a run and its continuation, perhaps on another machine, compute the same
    if compile and processes.is_launched():
        raise UsageError("--compile is for one process: the layers of a sharded model have hooks and run uncompiled")
    if out is None:
        raise UsageError("where is the run kept? Give a new folder: --out run")
    given: dict[str, Any] = dict(name=name, params=params, tiny=tiny, swap=tuple(swap or ()) or None, source=source)
    given |= dict(text=None if text is None else str(text.absolute()), vocab=vocab, context=context, batch=batch)
    given |= dict(
        accumulate=accumulate, tokens=None if tokens is None else _count("--tokens", tokens), minutes=minutes_
    )
    given |= dict(
        lr=lr, schedule=schedule and schedule.value, warmup=warmup, clip=clip, weight_decay=weight_decay, seed=seed
    )
    given |= dict(autocast=autocast, compile=compile, checkpoint_activations=checkpoint_activations)
    given |= dict(eval_every=eval_every, sample=sample)
    if params is not None and params != PUBLISHED:
        _count("--params", params)
    given = {option: value for option, value in given.items() if value is not None}
    with (
        processes.joined(device, "; go on from its checkpoints") as place,
        nullcontext() if processes.rank() else locked(out),
    ):
        last = processes.from_first(lambda: _checkpoint(out, resume, given))
        training, session = _resume(out, given, Path(last), place) if last else _start(out, given, place, began)
        _train(training, session)


@dataclass(frozen=True)
class Session:
    """The model of a run: its spec, the source of its first weights (if any), and whether it can be saved for
    others."""

    spec: Decoder
    opened: Source | None
    saves: bool

    def build(self, options: Options, place: torch.device, fresh: bool = True) -> Model:
        """Returns the model, set up as the options say: with its first weights if `fresh`, otherwise uninitialised."""
        if processes.ranks() > 1:
            first = partial(self._fresh, options, torch.device("cpu")) if fresh else None
            model = distributed.sharded(self.spec, place, first)
        else:
            model = self._fresh(options, place) if fresh else catalog.allocate(self.spec, place)
        model.activation_checkpointing = options.checkpoint_activations
        if options.compile and processes.ranks() > 1:
            _say("note: the run was compiled, and is not in several processes")
        elif options.compile:
            model.compile()
        return model

    def _fresh(self, options: Options, place: torch.device) -> Model:
        if self.opened is not None:
            return fill(self.spec, self.opened, place, "float32")
        return catalog.build(self.spec, device=place, seed=options.seed)

    def save(self, out: Path, model: Model | None) -> None:
        """Saves the trained model and its tokenizer files, for `weights.load` and `weights.generate`. A process without
        the model saves nothing."""
        if model is None:
            return
        with new_folder(out / SAVED, "the model ") as fresh:
            save(model, fresh)
            copyfile(out / TOKENIZER, fresh / TOKENIZER)
            for name in TEXT_FILES if self.opened else ():
                if self.opened and (path := self.opened.folder / name).is_file():
                    copyfile(path, fresh / name)


def _checkpoint(out: Path, resume: bool, given: dict[str, Any]) -> str | None:
    """Returns the path of the last checkpoint of the run in a folder, or None for a new run. Raises UsageError where a
    run exists and `resume` is not set, or the reverse."""
    remove_leftovers(out / CHECKPOINTS)
    remove_leftovers(out, SAVED)
    last = last_checkpoint(out)
    if last is None and (there := next((out / name for name in (LOG, SAVED) if (out / name).exists()), None)):
        raise UsageError(f"{there} is there, and no checkpoint of a run: give another folder, or remove it")
    if last is not None and not resume:
        raise UsageError(f"{out} holds a run, and nothing is overwritten: go on with --resume, or give another folder")
    if last is None and resume:
        if not {"name", "source"} & set(given):
            raise UsageError(f"{out} holds no checkpoint to resume")
        _say(f"{out} holds no checkpoint yet: the run starts from the beginning")
    return str(last) if last else None


def _start(out: Path, given: dict[str, Any], place: torch.device, began: float) -> tuple[Run, Session]:
    """Returns a new run with its number of steps, and its session."""
    options = Options.fresh(given)
    session = _session(options, place)
    source = session.opened.folder if session.opened else None
    data = processes.from_first(lambda: described(make_tokens(options, out, source)[0]))
    tokens, tokenizer = find_tokens(data, out, options)
    _say(f"text: {tokens.name}, {format_count(len(tokens.train))} tokens ({tokens.tokenizer}), hash {tokens.hash}")
    if tokens.vocab > session.spec.vocab:
        raise UsageError(f"the tokenizer has {tokens.vocab} tokens, and the model's vocabulary is {session.spec.vocab}")
    model = session.build(options, place)
    learns = material(model, tokens, tokenizer, options)
    rehearsed = Run(out, Trainer(model, replace(options, warmup=0.0).config(1)), learns, {}, 1)
    step = time_steps(rehearsed.trainer, learns.batch, 60 * (options.minutes or 0.0))
    evaluation = seconds(rehearsed.evaluate, place)
    steps, every = processes.from_first(lambda: _budget(options, step, evaluation, perf_counter() - began))
    trainer, options = Trainer(model, options.config(steps)), replace(options, eval_every=every)
    _say(
        f"{format_count(session.spec.params())} parameters on {place}: {steps:,} steps of "
        f"{trainer.config.tokens_per_step:,} tokens, about {minutes(steps * step + (steps / every + 1) * evaluation)}"
    )
    recorded = facts(session.spec, trainer, described(tokens), options=options.recorded())
    training = Run(out, trainer, learns, recorded, every)
    return training, session


def _budget(options: Options, step: float, evaluation: float, spent: float) -> tuple[int, int]:
    """Returns the number of steps of a run, and the number of steps between two evaluations."""
    if options.minutes is not None:
        return steps_within(60 * options.minutes - spent, step, evaluation, options.eval_every)
    steps = ceil((options.tokens or 0) / options.config(1).tokens_per_step)
    return steps, options.eval_every or max(1, round(steps / EVALUATIONS))


def _resume(out: Path, given: dict[str, Any], last: Path, place: torch.device) -> tuple[Run, Session]:
    """Returns the run in a folder, restored from its last checkpoint, and its session."""
    state = read_state(last)
    options = Options.resumed(given, state.get("options"))
    session = _session(options, place)
    tokens, tokenizer = find_tokens(state["data"], out, options, check_text="text" in given)
    model = session.build(options, place, fresh=False)
    trainer = Trainer(model, options.config(state["config"]["steps"]))
    recorded = facts(session.spec, trainer, described(tokens), options=options.recorded())
    learns = material(model, tokens, tokenizer, options)
    training = Run(out, trainer, learns, recorded, options.eval_every or 1)
    training.restore(last, state)
    _say(f"resumed after step {trainer.step:,} of {trainer.config.steps:,}")
    if not same_sums(state):
        _say(
            "note: other threads, processes or kernels than before: losses differ in the last digits from an uncut run"
        )
    return training, session


def _session(options: Options, place: torch.device) -> Session:
    """Returns the model that the options ask for. Reports dropped features, and a model that cannot be saved."""
    opened = None
    if options.source is not None:
        opened = open_source(_finished_model(Path(options.source)) or options.source)
        spec, dropped = opened.spec(), list[str]()
    else:
        spec, dropped = fresh_spec(options)
    if dropped:
        _say(f"dropped: {', '.join(dropped)}")
    try:
        config = catalog.to_hf(spec)
    except SpecError as error:
        _say(f"note: the trained model stays in the run's own checkpoints and is not saved for others: {error}")
        config = None
    if opened is not None and options.name is not None:
        family = next(each for each in families().values() if catalog.resolve(options.name) in each.SIZES)
        if config is None or family.from_hf is not catalog.family_of(config).from_hf:
            raise UsageError(f"{options.source} is no {options.name}; leave the name out")
    devices = processes.ranks() if place.type == "cuda" else 1  # processes share the memory of a CPU
    needed, free = BYTES_PER_PARAMETER * spec.params() // devices, free_memory(place)
    if free is not None and needed > free:
        raise NotAvailable(
            f"training {format_count(spec.params())} parameters needs {format_bytes(needed)} on {place} and more for "
            f"activations, and {format_bytes(free)} is free; --params scales the model down"
        )
    return Session(spec, opened, config is not None)


def _finished_model(source: Path) -> Path | None:
    """Returns the model's folder in a finished run. Raises NotAvailable for a run without one."""
    if (source / SAVED / CONFIG).is_file():
        return source / SAVED
    if last_checkpoint(source) is not None:
        raise NotAvailable(f"the run {source} has saved no model to start from: finish it with --resume")
    return None


def _train(training: Run, session: Session) -> None:
    """Trains to the end, saves the model, and prints a summary."""
    trainer, out = training.trainer, training.folder
    flops = training_flops_per_token(session.spec, trainer.config.context)
    dtype = torch.bfloat16 if trainer.config.autocast else torch.float32
    rate = processes.ranks() * processes.from_first(lambda: matmul_rate(trainer.device, dtype))
    rows = training.steps()
    try:
        row = deque(rows if processes.rank() else shown(rows, trainer.config.steps, flops, rate), maxlen=1)[0]
        if session.saves and processes.from_first(lambda: not (out / SAVED).exists()):
            session.save(out, distributed.whole_model(trainer.model))
    except KeyboardInterrupt:
        _say(f"the last checkpoint is {last_checkpoint(out)}; go on with: python -m zoo.train --out {out} --resume")
        raise
    except ZooError as error:
        raise type(error)(f"{error}; the last checkpoint is {last_checkpoint(out)}") from error
    if processes.rank() == 0:
        emit(summary(_figures(training, session, row, flops / rate)))


def _figures(training: Run, session: Session, row: dict[str, Any], seconds_per_token: float) -> dict[str, str]:
    """Returns the figures of the summary. `seconds_per_token` is the time at the measured arithmetic rate."""
    config, data, out = training.trainer.config, training.facts["data"], training.folder
    tokens = config.steps * config.tokens_per_step
    best = best_checkpoint(out / CHECKPOINTS)
    assert best is not None  # the last step was evaluated
    lowest = read_state(best)["bits_per_byte"]
    speed = tokens / training.seconds if training.seconds else 0.0
    spec = session.spec
    return {
        "model": f"{format_count(spec.params())} parameters, {format_count(spec.active_params())} active",
        "text": f"{data['name']}, hash {data['hash']}",
        "trained": f"{config.steps:,} steps, {format_count(tokens)} tokens in {minutes(training.seconds)}",
        "speed": f"{format_count(speed)} tokens/s, MFU {speed * seconds_per_token:.0%}",
        "held out": f"{row['bits_per_byte']:.3f} bits per byte, best {lowest:.3f} in {best.name}",
        "log": str(out / LOG),
        "saved": str(out / SAVED) if session.saves else f"not for others; {last_checkpoint(out)}",
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
