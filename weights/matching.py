"""Matches stored tensors with parameters, by names, shapes and dtypes, before any tensor is read."""

import re
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from math import prod
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.blocks.layer import Layer
from zoo.errors import MalformedError, UsageError, enough
from zoo.hf.checkpoint_layout import COMMON, WRAPPERS, LayerPrefix, ReadAs, Rule, Rules, Skipped
from zoo.model.decoder import Decoder
from zoo.model.module import Model
from zoo.model.sampling import GenerationConfig

READABLE_DTYPES = {torch.float32, torch.bfloat16, torch.float16, torch.float64}
TABLE_DTYPES = {torch.int32, torch.int64}  # dtypes of stored tables of integers
MAX_FOLDED_LINES = 20_000  # folding takes about a kilobyte of memory per line
HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file, not read yet: its name in the file, its shape, and its dtype (None: unreadable)."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None

    @property
    def nbytes(self) -> int:
        """The bytes of its elements."""
        assert self.dtype is not None
        return prod(self.shape) * self.dtype.itemsize


class Part(NamedTuple):
    """A part of a tensor: ranges of rows along `dim`, in order."""

    dim: int
    ranges: tuple[range, ...]

    def of(self, tensor: Tensor) -> Tensor:
        """Returns the part of a tensor, without a copy if it is one range of the first dimension."""
        pieces = [tensor.narrow(self.dim, rows.start, len(rows)) for rows in self.ranges]
        return torch.cat(pieces, dim=self.dim) if len(pieces) > 1 else pieces[0].contiguous()


class Source(ABC):
    """Weights on disk. A source describes their model, lists the stored tensors, and reads each tensor by name."""

    path: Path

    @property
    def folder(self) -> Path:
        """The folder of the source's other files, such as tokenizer.json."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def text_path(self) -> Path:
        """The path that the tokenizer is read from: the folder, or a file that holds one."""
        return self.folder

    @cached_property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Stored tensors by name, without the prefix of a multimodal wrapper and renamed by `ReadAs`. Raises
        MalformedError for duplicates."""
        named: dict[str, StoredTensor] = {}
        prefixes = WRAPPERS | {rule.prefix: rule.instead for rule in self.rules if isinstance(rule, ReadAs)}
        for tensor in self.stored():
            prefix = next((prefix for prefix in prefixes if tensor.name.startswith(prefix)), "")
            name = prefixes.get(prefix, "") + tensor.name[len(prefix) :]
            if name in named:
                both = f"{tensor.name} and {named[name].name}"
                raise MalformedError(f"{self.path}: {both} are both stored, for the same parameter")
            named[name] = tensor
        return named

    @property
    def embedding(self) -> str:
        """The name of the embedding's tensor."""
        named = (
            rule.checkpoint_names for rule in self.rules if isinstance(rule, Rule) and rule.module_names == "embed"
        )
        return f"{next(named)}.weight"

    @property
    @abstractmethod
    def rules(self) -> Rules:
        """The family's checkpoint layout."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The default dtype of a loaded model."""

    @property
    @abstractmethod
    def generation(self) -> GenerationConfig:
        """The published generation settings. Raises MalformedError for values of the wrong type."""

    @abstractmethod
    def spec(self, ignore_fields: Iterable[str] = ()) -> Decoder:
        """Returns the model that the source describes. Raises MalformedError for an unknown field that is not one of
        `ignore_fields`."""

    @abstractmethod
    def stored(self) -> list[StoredTensor]:
        """Returns every tensor, under its name in the files."""

    def get_part(self, name: str, part: Part, device: str | torch.device, dtype: torch.dtype | None = None) -> Tensor:
        """Returns part of a tensor by its name in `tensors`, converted as by `get`."""
        return part.of(self.get(name, device, dtype))

    @abstractmethod
    def get(self, name: str, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Tensor:
        """Returns a tensor by its name in `tensors`. `dtype` None: the stored dtype, or float32 if it is quantised."""


@dataclass(frozen=True)
class TensorMapping:
    """A rule that converts the stored tensors `checkpoint_names` into the parameters `module_names`. `layer` is the
    spec of their layer, None outside the layers."""

    rule: Rule
    layer: Layer | None
    module_names: tuple[str, ...]
    checkpoint_names: tuple[str, ...]

    def write(self, parameters: Mapping[str, Tensor]) -> Sequence[Tensor]:
        """Converts parameters to the tensors to store, in the order of `checkpoint_names`."""
        return self.rule.write([parameters[name] for name in self.module_names], self.layer)

    def expected(self, parameters: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each stored tensor, from parameters on the meta device."""
        shapes = (tuple(tensor.shape) for tensor in self.write(parameters))
        return dict(zip(self.checkpoint_names, shapes, strict=True))


def stored_tensors(model: Model) -> dict[str, Tensor]:
    """The tensors of a model that a checkpoint holds, by name: its parameters, and the buffers that a module declares
    as `stored_buffers`. All other buffers are computed when a module is built."""
    buffers = {
        f"{path}.{name}": module.get_buffer(name)
        for path, module in model.named_modules()
        for name in getattr(module, "stored_buffers", ())
    }
    return {**dict(model.named_parameters()), **buffers}


def layout(family: ModuleType) -> Rules:
    """Returns an architecture's checkpoint layout: its own rules, then the common rules."""
    return (*getattr(family, "WEIGHTS", ()), *COMMON)


def rule_names(rule: Rule) -> tuple[tuple[str, ...], str]:
    """Returns a rule's module names, and the checkpoint name that they are stored under."""
    names = rule.module_names
    return (names,) if isinstance(names, str) else names, rule.checkpoint_names


def match(spec: Decoder, parameters: Iterable[str], rules: Rules, stored: Container[str]) -> list[TensorMapping]:
    """Returns the mappings that fill all parameters. If several rules apply to a parameter, the first rule with a
    tensor in `stored` is used, or else the first rule. Raises UsageError naming parameters without a rule."""
    mappings: list[TensorMapping] = []
    layers = next(rule.prefix for rule in rules if isinstance(rule, LayerPrefix))
    filled: set[str] = set()
    unmapped: list[str] = []
    for parameter in parameters:
        if parameter in filled:
            continue
        found = [each for rule in rules if isinstance(rule, Rule) and (each := _bind(spec, rule, parameter, layers))]
        if found:  # `max` returns the first of equal maxima
            mappings.append(max(found, key=lambda each: any(name in stored for name in each.checkpoint_names)))
            filled.update(mappings[-1].module_names)
        else:
            unmapped.append(parameter)
    if unmapped:
        raise UsageError(f"no released checkpoint has a place for {listed(unmapped)}")
    return mappings


def _bind(spec: Decoder, rule: Rule, parameter: str, layers: str) -> TensorMapping | None:
    """Returns the rule's mapping for this parameter, or None if the rule does not apply to it. `layers` is the prefix
    of the checkpoint names in layers."""
    in_layer = re.fullmatch(r"layers\.(\d+)\.(.+)", parameter)
    prefix, local = (f"layers.{in_layer[1]}.", in_layer[2]) if in_layer else ("", parameter)
    module_names, checkpoint_name = rule_names(rule)
    suffix = next((end for end in ("", ".weight", ".bias") if local.removesuffix(end) in module_names), None)
    layer = spec.layers[int(in_layer[1])] if in_layer else None
    if suffix is None or not rule.applies(layer):
        return None
    checkpoint_name = (f"{layers}{in_layer[1]}." if in_layer else "") + checkpoint_name + suffix
    stored = [checkpoint_name]
    if layer and "{e}" in checkpoint_name:
        experts = layer.mixture.experts if layer.mixture else 0
        stored = [checkpoint_name.replace("{e}", str(e)) for e in range(experts)]
    return TensorMapping(rule, layer, tuple(f"{prefix}{name}{suffix}" for name in module_names), tuple(stored))


def skipped(spec: Decoder, rules: Rules, names: Iterable[str]) -> dict[str, list[str]]:
    """Returns {description: names} of the stored tensors that are skipped on purpose."""
    names = list(names)
    found = {"the embedding, stored again as the head": [HEAD]} if spec.tied and HEAD in names else {}
    skips = [(rule.what, rule.matcher(spec.layers)) for rule in rules if isinstance(rule, Skipped)]
    for name in names:
        what = next((what for what, matcher in skips if matcher.fullmatch(name)), None)
        if what is not None:
            found.setdefault(what, []).append(name)
    return found


def check_fit(
    source: Source, mappings: Sequence[TensorMapping], parameters: Mapping[str, Tensor], skip: set[str]
) -> None:
    """Raises one MalformedError naming every tensor that does not fit: missing, neither used nor in `skip`, of a wrong
    shape, or of an unreadable dtype."""
    stored, shapes = source.tensors, [item for each in mappings for item in each.expected(parameters).items()]
    used, found = {name for name, _ in shapes}, [(stored[name], shape) for name, shape in shapes if name in stored]
    whole = {
        name
        for each in mappings
        for name in each.checkpoint_names
        if not parameters[each.module_names[0]].is_floating_point()
    }
    tables = [stored[name] for name in whole if name in stored]
    others = [tensor for tensor, _ in found if tensor not in tables]
    problems = {
        "missing": used - stored.keys(),
        "not understood": [stored[name].name for name in stored.keys() - used - skip],
        "wrong shape": [f"{t.name} {list(t.shape)} instead of {list(shape)}" for t, shape in found if t.shape != shape],
        "neither float32, bfloat16, float16 nor float64": [t.name for t in others if t.dtype not in READABLE_DTYPES],
        "neither int32 nor int64": [t.name for t in tables if t.dtype not in TABLE_DTYPES],
    }
    refuse_problems(f"{source.path}: the tensors do not fit the model", problems)


def refuse_problems(where: str, problems: Mapping[str, Iterable[str]]) -> None:
    """Raises one MalformedError that lists `problems`, {problem: names of tensors}, unless there are no names."""
    if found := [f"{what}: {listed(names)}" for what, names in problems.items() if names]:
        raise MalformedError(f"{where}; {'; '.join(found)}")


def listed(lines: Iterable[str]) -> str:
    """Folds lines and joins them into one. Beyond MAX_FOLDED_LINES lines, it adds only the total count."""
    lines = list(lines)
    rest = f", ... ({len(lines)} in all)" if len(lines) > MAX_FOLDED_LINES else ""
    return enough(folded(lines[:MAX_FOLDED_LINES])) + rest


def folded(lines: Iterable[str]) -> list[str]:
    """Merges lines that differ in one number only: "layers.{0-27}.mlp.up_proj". Nothing is left out."""
    split = {tuple(re.split(r"(?<=\.)(\d+)(?=\.)", line)) for line in lines}
    for place in range(max(map(len, split), default=1) - 2, 0, -2):
        groups: dict[tuple[str, ...], list[str]] = {}
        for pieces in split:
            if len(pieces) > place:
                groups.setdefault((*pieces[:place], "", *pieces[place + 1 :]), []).append(pieces[place])
        short = {pieces for pieces in split if len(pieces) <= place}
        split = short | {(*key[:place], _ranges(numbers), *key[place + 1 :]) for key, numbers in groups.items()}
    return sorted("".join(pieces) for pieces in split)


def _ranges(numbers: Iterable[str]) -> str:
    """Formats numbers as ranges: "3", "4", "5", "9" -> "{3-5,9}"; a single number stays as it is."""
    counted = enumerate(sorted(map(int, numbers)))  # in a run, number minus count is constant
    runs = [[number for _, number in run] for _, run in groupby(counted, lambda pair: pair[1] - pair[0])]
    text = ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return text if text.isdigit() else f"{{{text}}}"
