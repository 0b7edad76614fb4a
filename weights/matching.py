"""Which stored tensors fill which parameters: decided from names, shapes and dtypes, before any tensor is read."""

import re
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from zoo.blocks.layer import Layer
from zoo.errors import MalformedError, UsageError, enough
from zoo.hf.checkpoint_layout import COMMON, WRAPPERS, Rule, Rules, Skipped
from zoo.model.decoder import Decoder

READABLE_DTYPES = {torch.float32, torch.bfloat16, torch.float16, torch.float64}
MAX_FOLDED_LINES = 20_000  # folding takes about a kilobyte of memory per line
HEAD, EMBED = "lm_head.weight", "model.embed_tokens.weight"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file, not read yet: its name in the file, its shape, its dtype (None: one that cannot be read)."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        assert self.dtype is not None
        return prod(self.shape) * self.dtype.itemsize


class Source(ABC):
    """Weights on disk under Hugging Face's names: which model they are of, what is stored, and each tensor by name."""

    path: Path

    @property
    def folder(self) -> Path:
        """Where the source's other files are, such as tokenizer.json."""
        return self.path if self.path.is_dir() else self.path.parent

    @cached_property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Stored tensors by name, without the prefix of a multimodal wrapper. Raises MalformedError for duplicates."""
        named: dict[str, StoredTensor] = {}
        for tensor in self.stored():
            prefix = next((prefix for prefix in WRAPPERS if tensor.name.startswith(prefix)), "")
            name = WRAPPERS.get(prefix, "") + tensor.name[len(prefix) :]
            if name in named:
                both = f"{tensor.name} and {named[name].name}"
                raise MalformedError(f"{self.path}: {both} are both stored, for the same parameter")
            named[name] = tensor
        return named

    @property
    @abstractmethod
    def rules(self) -> Rules:
        """The family's checkpoint layout."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype that a model is loaded in unless another is asked for."""

    @property
    @abstractmethod
    def end_tokens(self) -> list[int]:
        """Ids of the tokens that end a text."""

    @abstractmethod
    def spec(self, ignore_fields: Iterable[str] = ()) -> Decoder:
        """The model that the source describes. Raises MalformedError for a field that is not understood, unless it is
        one of `ignore_fields`."""

    @abstractmethod
    def stored(self) -> list[StoredTensor]:
        """Every tensor, under its name in the files."""

    @abstractmethod
    def get(self, name: str, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Tensor:
        """The tensor of a name in `tensors`. `dtype` None: as it is stored, or float32 where it is quantised."""


@dataclass(frozen=True)
class TensorMapping:
    """The stored tensors `checkpoint_names` become the parameters `module_names` by a rule. `layer` is the spec of the
    layer that they are in, None outside the layers."""

    rule: Rule
    layer: Layer | None
    module_names: tuple[str, ...]
    checkpoint_names: tuple[str, ...]

    def write(self, parameters: Mapping[str, Tensor]) -> Sequence[Tensor]:
        """Parameters -> the tensors to store, in the order of `checkpoint_names`."""
        return self.rule.write([parameters[name] for name in self.module_names], self.layer)

    def expected(self, parameters: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """The shape of each stored tensor, from parameters on the meta device."""
        shapes = (tuple(tensor.shape) for tensor in self.write(parameters))
        return dict(zip(self.checkpoint_names, shapes, strict=True))


def layout(family: ModuleType) -> Rules:
    """An architecture's checkpoint layout: its own rules first."""
    return (*getattr(family, "WEIGHTS", ()), *COMMON)


def rule_names(rule: Rule) -> tuple[tuple[str, ...], str]:
    """A rule's module names, and the checkpoint name that they are stored under."""
    names = rule.module_names
    return (names,) if isinstance(names, str) else names, rule.checkpoint_names


def match(spec: Decoder, parameters: Iterable[str], rules: Rules, stored: Container[str]) -> list[TensorMapping]:
    """The mappings that fill all parameters. Where several rules apply to a parameter, the first one whose tensors are
    `stored` wins, else the first.

    Raises UsageError naming the parameters that no rule applies to.
    """
    mappings: list[TensorMapping] = []
    filled: set[str] = set()
    unmapped: list[str] = []
    for parameter in parameters:
        if parameter in filled:
            continue
        found = [each for rule in rules if isinstance(rule, Rule) and (each := _bind(spec, rule, parameter))]
        if not found:
            unmapped.append(parameter)
            continue
        mappings.append(
            next((each for each in found if any(name in stored for name in each.checkpoint_names)), found[0])
        )
        filled.update(mappings[-1].module_names)
    if unmapped:
        raise UsageError(f"no released checkpoint has a place for {listed(unmapped)}")
    return mappings


def _bind(spec: Decoder, rule: Rule, parameter: str) -> TensorMapping | None:
    """The rule applied to this parameter; None if it is for others."""
    in_layer = re.fullmatch(r"layers\.(\d+)\.(.+)", parameter)
    prefix, local = (f"layers.{in_layer[1]}.", in_layer[2]) if in_layer else ("", parameter)
    module_names, checkpoint_name = rule_names(rule)
    stem, _, leaf = local.rpartition(".")
    if local in module_names:
        suffix = ""
    elif stem in module_names and leaf in ("weight", "bias"):
        suffix = f".{leaf}"
    else:
        return None
    layer = spec.layers[int(in_layer[1])] if in_layer else None
    stored = (f"model.{prefix}" if in_layer else "") + checkpoint_name + suffix
    experts = range(_experts(layer) if layer and "{e}" in stored else 0)
    each = [stored.replace("{e}", str(e)) for e in experts] if "{e}" in stored else [stored]
    return TensorMapping(rule, layer, tuple(f"{prefix}{name}{suffix}" for name in module_names), tuple(each))


def _experts(layer: Layer) -> int:
    """The number of experts in a layer's feed-forward, of whichever kind; 0 without experts."""
    counts = (getattr(part, "experts", None) for part in layer.ffn.walk())
    return next((count for count in counts if isinstance(count, int)), 0)


def skipped(spec: Decoder, rules: Rules, names: Iterable[str]) -> dict[str, list[str]]:
    """Stored tensors that are left out on purpose: what they are -> their names."""
    names = list(names)
    found = {"the embedding, stored again as the head": [HEAD]} if spec.tied and HEAD in names else {}
    skips = [(rule.what, rule.matcher(len(spec.layers))) for rule in rules if isinstance(rule, Skipped)]
    for name in names:
        what = next((what for what, matcher in skips if matcher.fullmatch(name)), None)
        if what is not None:
            found.setdefault(what, []).append(name)
    return found


def check_fit(
    source: Source, mappings: Sequence[TensorMapping], parameters: Mapping[str, Tensor], skip: set[str]
) -> None:
    """Raise one MalformedError naming every tensor that does not fit: missing, neither used nor one to `skip`, of a
    wrong shape, of a dtype that cannot be read."""
    stored = source.tensors
    used = {name for mapping in mappings for name in mapping.checkpoint_names}
    wrong_shapes = [
        f"{stored[name].name} {list(stored[name].shape)} instead of {list(shape)}"
        for mapping in mappings
        for name, shape in mapping.expected(parameters).items()
        if name in stored and stored[name].shape != shape
    ]
    wrong_dtypes = [name for name in used & stored.keys() if stored[name].dtype not in READABLE_DTYPES]
    problems = {
        "missing": used - stored.keys(),
        "not understood": [tensor.name for name, tensor in stored.items() if name not in used | skip],
        "wrong shape": wrong_shapes,
        "neither float32, bfloat16, float16 nor float64": [stored[name].name for name in wrong_dtypes],
    }
    if any(problems.values()):
        raise MalformedError(f"{source.path}: the tensors do not fit the model; {joined_problems(problems)}")


def joined_problems(problems: Mapping[str, Iterable[str]]) -> str:
    """What is wrong -> the names that it is wrong of, as one line; kinds without names are left out."""
    return "; ".join(f"{what}: {listed(names)}" for what, names in problems.items() if names)


def listed(lines: Iterable[str]) -> str:
    """Lines as one, folded; above MAX_FOLDED_LINES, the first ones and how many there are."""
    lines = list(lines)
    rest = f", ... ({len(lines)} in all)" if len(lines) > MAX_FOLDED_LINES else ""
    return enough(folded(lines[:MAX_FOLDED_LINES])) + rest


def folded(lines: Iterable[str]) -> list[str]:
    """Lines that differ in one number only, as one line: "layers.{0-27}.mlp.up_proj". Nothing is left out."""
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
    """ "3", "4", "5", "9" -> "{3-5,9}"; a single number as it is."""
    runs: list[list[int]] = []
    for number in sorted(map(int, numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    text = ",".join("-".join(map(str, run)) for run in runs)
    return text if text.isdigit() else f"{{{text}}}"
