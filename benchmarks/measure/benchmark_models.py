"""The models to measure, their variants, and their weights."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.analytic.models import NamedSpec, representatives, swapped
from weights.loading import fill, open_source
from weights.matching import Source
from zoo.catalog import build
from zoo.errors import UsageError
from zoo.model.decoder import Decoder
from zoo.model.module import Model as Module
from zoo.model.parallel import Ranks, build_part
from zoo.swaps.tiny import tiny


@dataclass(frozen=True)
class BenchmarkModel:
    """A model to measure. `entry`: its name and spec. `source`: its weights, or None for random weights."""

    entry: NamedSpec
    source: Source | None = None
    tiny: bool = False

    @property
    def spec(self) -> Decoder:
        """The spec that is built."""
        return self.entry.spec

    @property
    def label(self) -> str:
        """The name in tables."""
        return self.entry.label

    def build(self, device: torch.device, dtype: torch.dtype, seed: int, ranks: Ranks = Ranks()) -> Module:
        """Returns the module, or this process's part of it, in eval mode."""
        if self.source is not None:
            return fill(self.spec, self.source, device, dtype, ranks=ranks)
        if ranks.group is not None:
            return build_part(self.spec, ranks, device, dtype, seed)
        return build(self.spec, device=device, dtype=dtype, seed=seed)


@dataclass(frozen=True)
class Variant:
    """A change to every named model: `tiny` widths, only its first `layers`, or a second model with `swaps`."""

    tiny: bool = False
    layers: int | None = None
    swaps: tuple[str, ...] = ()
    released: bool = False  # presets and hub ids, too, have their released weights

    def of(self, model: BenchmarkModel) -> BenchmarkModel:
        """Returns the tiny form or the first layers of a model, with random weights if that changes the spec."""
        spec = tiny(model.spec) if self.tiny else model.spec
        spec = spec if self.layers is None else first_layers(spec, self.layers)
        source = model.source if spec == model.spec else None
        return BenchmarkModel(replace(model.entry, spec=spec), source, self.tiny)


def benchmark_models(names: Sequence[str], variant: Variant, ignore_fields: Iterable[str] = ()) -> list[BenchmarkModel]:
    """Returns each named model in its variant, followed by its swapped form if there are swaps.

    Without names, every architecture is measured. A .gguf file or a folder with safetensors files keeps its weights,
    unless the variant changes its spec. A swap changes the full model; the tiny form or the first layers are taken
    after it.
    """
    named = [_named(name, variant, ignore_fields) for name in names] or [map(BenchmarkModel, representatives([]))]
    found = [model for models in named for model in models]
    if repeated := [label for label, times in Counter(model.label for model in found).items() if times > 1]:
        raise UsageError(f"{repeated[0]} is named twice: samples are kept by name")
    swaps = variant.swaps
    both = [(model, *([BenchmarkModel(swapped(model.entry, swaps))] if swaps else [])) for model in found]
    return [variant.of(model) for models in both for model in models]


def _named(name: str, variant: Variant, ignore_fields: Iterable[str]) -> Iterator[BenchmarkModel]:
    path = Path(name)
    holds_weights = path.suffix == ".gguf" or (path.is_dir() and any(path.glob("*.safetensors")))
    if not (holds_weights or (variant.released and not path.is_dir())):
        yield from map(BenchmarkModel, representatives([name], (), ignore_fields))
        return
    source = open_source(name)
    spec = source.spec(ignore_fields)
    if path.exists():
        name = source.path.stem if path.is_file() else source.path.resolve().name
        yield BenchmarkModel(NamedSpec(name, spec), source)
    else:
        yield BenchmarkModel(replace(representatives([name])[0], spec=spec), source)


def first_layers(spec: Decoder, number: int) -> Decoder:
    """Returns the spec with only `number` of its layers, in their order.

    The first layer of each kind is chosen before any other layer. A spec with fewer layers keeps all of them.
    """
    firsts = [spec.layers.index(kind) for kind in dict.fromkeys(spec.layers)]
    others = (index for index in range(len(spec.layers)) if index not in set(firsts))
    kept = sorted([*firsts, *others][:number])
    return replace(spec, layers=tuple(spec.layers[index] for index in kept))
