"""Models that are to be measured: which, with what weights, and whether they fit into memory."""

from __future__ import annotations

from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.analytic.models import Model, representatives, swapped
from benchmarks.measure.runners import Workload
from weights.loading import fill, open_source
from weights.matching import Source
from zoo.catalog import build
from zoo.core.devices import free_memory
from zoo.errors import NotAvailable, UsageError
from zoo.model.decoder import Decoder
from zoo.model.decoder import Model as Module
from zoo.swaps.tiny import tiny
from zoo.units import dtype_name, format_bytes, format_count


@dataclass(frozen=True)
class Subject:
    """A model to measure: its spec, as it is built, under a name. Without a `source` its weights are random."""

    model: Model
    source: Source | None = None
    tiny: bool = False

    @property
    def spec(self) -> Decoder:
        """What is built."""
        return self.model.spec

    @property
    def label(self) -> str:
        """Its name in tables."""
        return self.model.label

    def build(self, device: torch.device, dtype: torch.dtype, seed: int) -> Module:
        """The module, in eval mode."""
        if self.source is not None:
            return fill(self.spec, self.source, device, dtype)
        return build(self.spec, device=device, dtype=dtype, seed=seed)


@dataclass(frozen=True)
class Form:
    """What is made of each model that is named: its tiny form, its first layers, or the form that swaps give it."""

    tiny: bool = False
    layers: int | None = None
    swaps: tuple[str, ...] = ()
    released: bool = False  # weights of presets, too, are the released ones

    def changes(self, spec: Decoder) -> Decoder:
        """The tiny form or the first layers."""
        spec = tiny(spec) if self.tiny else spec
        return spec if self.layers is None else first_layers(spec, self.layers)


def chosen(words: Sequence[str], form: Form, ignore_fields: Iterable[str] = ()) -> list[Subject]:
    """A subject for each word, followed by its swapped form where there are swaps; no words: every architecture.

    A .gguf file, or a folder with safetensors files, is measured with the weights in it, unless its form is another.
    A swap changes the full model, as everywhere here, and the other forms are made of what it leaves.
    """
    named = [_named(word, form, ignore_fields) for word in words] or [map(Subject, representatives([]))]
    found = [subject for subjects in named for subject in subjects]
    if twice := [name for name, times in Counter(each.label for each in found).items() if times > 1]:
        raise UsageError(f"{twice[0]} is named twice: samples are kept by name")
    return [formed(each, form) for subject in found for each in (subject, *_swapped(subject, form.swaps))]


def _named(word: str, form: Form, ignore_fields: Iterable[str]) -> Iterator[Subject]:
    if not (source := _source(word, form)):
        yield from map(Subject, representatives([word], (), ignore_fields))
        return
    spec = source.spec(ignore_fields)
    if Path(word).exists():
        yield Subject(Model(source.path.stem if source.path.is_file() else source.path.resolve().name, spec), source)
    else:
        yield Subject(replace(representatives([word])[0], spec=spec), source)


def _source(word: str, form: Form) -> Source | None:
    path = Path(word)
    stored = path.suffix == ".gguf" or (path.is_dir() and any(path.glob("*.safetensors")))
    return open_source(word) if stored or (form.released and not path.is_dir()) else None


def formed(subject: Subject, form: Form) -> Subject:
    """Its tiny form or its first layers; with fresh weights, unless it is the same."""
    spec = form.changes(subject.spec)
    same = spec == subject.spec
    return Subject(replace(subject.model, spec=spec), subject.source if same else None, form.tiny)


def _swapped(subject: Subject, swaps: Sequence[str]) -> list[Subject]:
    return [Subject(swapped(subject.model, swaps))] if swaps else []


def first_layers(spec: Decoder, number: int) -> Decoder:
    """`number` layers of the plan, in its order: the first of each kind, as far as they go, and then the first others.

    All of the plan if it has no more than that.
    """
    firsts = [spec.layers.index(kind) for kind in dict.fromkeys(spec.layers)]
    others = (index for index in range(len(spec.layers)) if index not in set(firsts))
    kept = sorted([*firsts, *others][:number])
    return replace(spec, layers=tuple(spec.layers[index] for index in kept))


Need = Callable[[Decoder, torch.dtype], int]


def need(works: Sequence[Workload], modes: int, copies: int = 1) -> Need:
    """Bytes that a spec takes in a dtype: weights, `copies` times; for each of `modes` a cache for each workload, with
    what was in its rings; and room for the widest pass."""

    def bytes_of(spec: Decoder, dtype: torch.dtype) -> int:
        caches = sum(spec.kv_bytes(work.capacity, work.batch, dtype) for work in works)
        rings = sum(spec.kv_growth(dtype)[0] * work.batch for work in works if work.depth)
        widest = max(work.batch * max(new for _, new in work.passes) for work in works)
        hidden = max(layer.active_params(spec.dim) // spec.dim for layer in spec.layers)  # numbers a token, at most
        room = widest * (hidden + 4 * spec.dim) * dtype.itemsize + works[0].batch * spec.vocab * dtype.itemsize
        return copies * spec.params() * dtype.itemsize + modes * (caches + min(rings, caches)) + room

    return bytes_of


def check_memory(subjects: Sequence[Subject], needed: Need, device: torch.device, dtype: torch.dtype) -> None:
    """Raise NotAvailable, before anything is allocated, unless all fit together into the memory that is free."""
    free, specs = free_memory(device), [subject.spec for subject in subjects]
    wanted = sum(needed(spec, dtype) for spec in specs)
    if free is None or wanted <= free:
        return
    told = ", ".join(f"{each.label} ({format_count(each.spec.params())} parameters)" for each in subjects)
    together = ("needs", "") if len(subjects) == 1 else ("need", " together")
    raise NotAvailable(
        f"{told} in {dtype_name(dtype)} {together[0]} {format_bytes(wanted)}{together[1]} on {device}, "
        f"and {format_bytes(free)} is free; "
        f"what would fit: {', '.join(_fitting(specs, needed, dtype, free))}"
    )


def _fitting(specs: Sequence[Decoder], needed: Need, dtype: torch.dtype, free: int) -> list[str]:
    """Options with which the specs take at most `free` bytes in all."""

    def fits(number: int, dtype: torch.dtype = dtype) -> bool:
        return sum(needed(first_layers(spec, number), dtype) for spec in specs) <= free

    all_layers, coarse = max(len(spec.layers) for spec in specs), torch.bfloat16
    half = ["--dtype bfloat16"] if dtype.itemsize > coarse.itemsize and fits(all_layers, coarse) else []
    most = bisect(range(1, all_layers), False, key=lambda number: not fits(number))
    return [*half, *([f"--layers {most}"] if most else []), "--tiny"]
