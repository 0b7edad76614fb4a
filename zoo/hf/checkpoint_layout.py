"""The layout of the zoo's parameters in Hugging Face checkpoints: a table of rules that run both ways.

A rule ties parameters of the module to tensors of the checkpoint. Names are local to a layer ("attn.block.q" is stored
as "self_attn.q_proj", behind a `LayerPrefix` and the layer's number), or full outside the layers. A module's name
stands for its weight and its bias. `COMMON` holds the rules that architectures share. An architecture's `WEIGHTS` holds
the rest, and takes precedence.

The modules hold the experts' gate and up as (experts, hidden, dim), and down as (experts, dim, hidden).
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from zoo.blocks.gqa import GQA
from zoo.blocks.layer import Layer
from zoo.registry import Mixer


@dataclass(frozen=True)
class Rule(ABC):
    """Parameters `module_names` are stored as tensors `checkpoint_names`, in which "{e}" stands for an expert's number.

    `layer` is the spec of their layer, None outside the layers. A rule with a `mixer` applies only in layers with that
    kind of mixer.
    """

    module_names: str | tuple[str, ...]
    checkpoint_names: str
    mixer: type[Mixer] | None = field(default=None, kw_only=True)

    def applies(self, layer: Layer | None) -> bool:
        """Whether the rule is for parameters of this layer."""
        return self.mixer is None or (layer is not None and isinstance(layer.mixer, self.mixer))

    @abstractmethod
    def read(self, stored: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        """Converts stored tensors to parameters. It indexes each tensor once, since indexing may read the tensor from
        its file."""

    @abstractmethod
    def write(self, parameters: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        """Converts parameters to the tensors to store: the inverse of `read`. Meta tensors give the expected shapes."""

    def stored_rows(
        self, parameter: int, dim: int, rows: Tensor, shape: Sequence[int], layer: Layer | None
    ) -> tuple[int, Tensor]:
        """Locates rows along a dimension of a parameter in a stored tensor of this shape.

        Returns the stored dimension, and the rows along it in stored order. The same rule converts a part that is read
        so to that part of the parameter.
        """
        if dim:
            return dim, rows  # most rules move rows of the first dimension alone
        return 0, self.read([torch.arange(shape[0])], layer)[parameter][rows].sort().values

    def fill(self, parameters: Sequence[Tensor], stored: Sequence[Tensor], layer: Layer | None) -> None:
        """Reads the stored tensors into allocated parameters, with as few of them in memory at a time as possible."""
        for parameter, value in zip(parameters, self.read(stored, layer), strict=True):
            parameter.copy_(value)


class Rename(Rule):
    """The parameter is stored unchanged, under another name."""

    def read(self, stored: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        return stored

    def write(self, parameters: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        return parameters


class Stacked(Rule):
    """Each expert has a stored tensor; the parameter is their stack."""

    def read(self, stored: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        return [torch.stack(list(stored))]

    def fill(self, parameters: Sequence[Tensor], stored: Sequence[Tensor], layer: Layer | None) -> None:
        for place, expert in zip(parameters[0], stored, strict=True):
            place.copy_(expert)

    def stored_rows(
        self, parameter: int, dim: int, rows: Tensor, shape: Sequence[int], layer: Layer | None
    ) -> tuple[int, Tensor]:
        assert dim, "experts are stored one by one"
        return dim - 1, rows

    def write(self, parameters: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        return parameters[0].unbind()


FUSED_AXES = {"gate_up": 2, "qkv": 3}  # an axis of several parameters, and how many


@dataclass(frozen=True)
class Rearranged(Rule):
    """One stored tensor of another layout. `pattern` is einops': from the stored axes to the axes of the parameters.

    An axis `gate_up` of two, or `qkv` of three, holds the parameters. "e (gate_up hidden) dim -> gate_up e hidden dim"
    has all rows of gate, then all rows of up; "(hidden gate_up)" alternates them.
    """

    pattern: str

    @property
    def _fused(self) -> dict[str, int]:
        """Returns the FUSED_AXES that are in the pattern."""
        return {axis: number for axis, number in FUSED_AXES.items() if axis in self.pattern}

    def read(self, stored: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        if not self._fused:
            return [rearrange(stored[0], self.pattern)]
        return rearrange(stored[0], self.pattern, **self._fused).unbind()

    def stored_rows(
        self, parameter: int, dim: int, rows: Tensor, shape: Sequence[int], layer: Layer | None
    ) -> tuple[int, Tensor]:
        before, after = map(_axes, self.pattern.split(" -> "))
        fused = self._fused
        wanted = after[dim + (1 if fused else 0)]
        place = next(i for i, axes in enumerate(before) if set(axes) & set(wanted))
        # Other dimensions need no more places than the axes that hold several parameters.
        sizes = [prod(fused.get(axis, 1) for axis in axes) for axes in before]
        sizes[place] = shape[place]
        coordinates = torch.arange(shape[place]).view([-1 if i == place else 1 for i in range(len(sizes))])
        moved = self.read([coordinates.expand(sizes)], layer)[parameter].movedim(dim, 0)
        moved = moved.reshape(len(moved), -1)[:, 0]
        return place, moved[rows].sort().values

    def write(self, parameters: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        inverse = " -> ".join(reversed(self.pattern.split(" -> ")))
        if not self._fused:
            return [rearrange(parameters[0], inverse)]
        # Written through the views that `read` gives of it: torch.stack would copy twice, and imports the compiler for
        # meta tensors, which takes a second and 60 MB.
        first, number = parameters[0].detach(), len(parameters)
        stored = first.new_empty(rearrange(first.to("meta").expand(number, *first.shape), inverse).shape)
        for view, parameter in zip(self.read([stored], layer), parameters, strict=True):
            view.copy_(parameter.detach())
        return [stored]


def _axes(side: str) -> list[list[str]]:
    """Returns the names of the axes in each dimension of one side of an einops pattern."""
    return [group.strip("()").split() for group in re.findall(r"\([^)]*\)|\S+", side)]


@dataclass(frozen=True)
class PackedRows(Rule):
    """One stored tensor with the rows of all parameters, one group of heads after the other.

    The mixer's field `groups` holds the number of groups (None: one). `sections` returns, for a mixer, the number of
    rows in each section of each parameter, over all groups. A parameter holds one section of all groups, then the next.
    A group of the stored tensor holds its share of every section.
    """

    groups: str | None
    sections: Callable[[Any], tuple[tuple[int, ...], ...]]

    def _shape(self, layer: Layer | None) -> tuple[int, tuple[tuple[int, ...], ...]]:
        """Returns the number of groups, and the rows in each section of each parameter."""
        assert layer is not None
        return getattr(layer.mixer, self.groups) if self.groups else 1, self.sections(layer.mixer)

    def read(self, stored: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        groups, sections = self._shape(layer)
        shares = [rows // groups for each in sections for rows in each]
        pieces = iter(stored[0].unflatten(0, (groups, -1)).split(shares, dim=1))
        parameters = ([next(pieces).flatten(0, 1) for _ in each] for each in sections)
        # One section of one group stays a view of the file.
        return [torch.cat(each) if len(each) > 1 else each[0] for each in parameters]

    def write(self, parameters: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        groups, sections = self._shape(layer)
        pairs = zip(parameters, sections, strict=True)
        pieces = [piece.unflatten(0, (groups, -1)) for rows, each in pairs for piece in rows.detach().split(each)]
        return [torch.cat(pieces, dim=1).flatten(0, 1)]


def fused_qkv(checkpoint_name: str) -> PackedRows:
    """Returns the rule for one stored tensor with the rows of the queries, then of the keys, then of the values."""
    names = ("attn.block.q", "attn.block.k", "attn.block.v")
    return PackedRows(names, checkpoint_name, None, _qkv_rows)


def _qkv_rows(attn: GQA) -> tuple[tuple[int, ...], ...]:
    return (attn.heads * attn.head_dim,), (attn.kv_heads * attn.head_dim,), (attn.kv_heads * attn.value_dim,)


@dataclass(frozen=True)
class PairedRows(Rule):
    """The checkpoint rotates rows 2j and 2j + 1 of each head as a pair, the module rows j and j + half.

    `widths` returns, for a mixer, the number of a head's rows before the rotary ones, of the rotary ones, and of those
    behind. With `axis` -1 the columns are paired: of a matrix that multiplies the output of heads, or of a bias on
    their elements.
    """

    widths: Callable[[Any], tuple[int, int, int]]
    axis: int = field(default=0, kw_only=True)

    def read(self, stored: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        rows = stored[0]
        return [rows.index_select(self.axis, self._order(rows.shape[self.axis], layer).to(rows.device))]

    def write(self, parameters: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        rows = parameters[0]
        return [rows.index_select(self.axis, self._order(rows.shape[self.axis], layer).argsort().to(rows.device))]

    def _order(self, rows: int, layer: Layer | None) -> Tensor:
        """Returns the checkpoint's row for each row of the parameter, (rows,)."""
        assert layer is not None
        widths = self.widths(layer.mixer)
        before, moved, after = torch.arange(rows).view(-1, sum(widths)).split(widths, dim=1)
        return torch.cat([before, rearrange(moved, "h (pair side) -> h (side pair)", side=2), after], dim=1).flatten()

    def stored_rows(
        self, parameter: int, dim: int, rows: Tensor, shape: Sequence[int], layer: Layer | None
    ) -> tuple[int, Tensor]:
        if not self.axis:
            return super().stored_rows(parameter, dim, rows, shape, layer)
        assert dim < len(shape) - 1, "columns are moved inside heads"
        return dim, rows


@dataclass(frozen=True)
class Skipped:
    """Stored tensors whose whole name matches `pattern` are not loaded; `what` describes their content.

    In a pattern "*" stands for any text, "{i}" for any number, and "{layers}" for the number of layers. With a `mixer`,
    "{i}" stands for the number of a layer with that kind of mixer.
    """

    pattern: str
    what: str
    mixer: type[Mixer] | None = field(default=None, kw_only=True)

    def matcher(self, layers: Sequence[Layer]) -> re.Pattern[str]:
        """Returns the pattern as a regular expression for `fullmatch`, for a model of these layers."""
        number = r"\d+"
        if self.mixer is not None:
            of_mixer = [str(i) for i, layer in enumerate(layers) if isinstance(layer.mixer, self.mixer)]
            number = f"(?:{'|'.join(of_mixer)})" if of_mixer else "(?!)"  # matches nothing
        stands = {"*": ".*", "{i}": number, "{layers}": str(len(layers))}
        pieces = re.split(r"(\*|\{\w+\})", self.pattern)
        return re.compile("".join(stands[each] if i % 2 else re.escape(each) for i, each in enumerate(pieces)))


@dataclass(frozen=True)
class LayerPrefix:
    """The names of layer 3's tensors in the checkpoint begin with `prefix` and "3."."""

    prefix: str


@dataclass(frozen=True)
class ReadAs:
    """Stored names that begin with `prefix` are read as if they began with `instead`. Files of a model without its head
    lack the first part of each name."""

    prefix: str
    instead: str


Rules = tuple[Rule | Skipped | LayerPrefix | ReadAs, ...]

GATE_UP = ("ffn.block.experts.gate", "ffn.block.experts.up")
GLU_NAMES = ("gate", "up", "down")
NUMBERED = dict(gate="w1", up="w3", down="w2")  # the names of a GLU's matrices in many releases


def stacked_gate_up(checkpoint_name: str, experts: str = "ffn.block.experts") -> Rearranged:
    """Returns the rule for one tensor of all experts, each with the rows of gate and then those of up."""
    names = (f"{experts}.gate", f"{experts}.up")
    return Rearranged(names, checkpoint_name, "e (gate_up hidden) dim -> gate_up e hidden dim")


COMMON: Rules = (
    LayerPrefix("model.layers."),
    Rename("embed", "model.embed_tokens"),
    Rename("norm", "model.norm"),
    Rename("head", "lm_head"),
    Rename("attn.pre", "input_layernorm"),
    Rename("attn.post", "post_attention_layernorm"),
    Rename("ffn.pre", "post_attention_layernorm"),
    Rename("ffn.post", "post_feedforward_layernorm"),
    *(Rename(f"attn.block.{name}", f"self_attn.{name}_proj") for name in ("q", "k", "v", "o")),
    *(Rename(f"attn.block.{name}", f"self_attn.{name}") for name in ("q_norm", "k_norm", "sinks")),
    *(Rename(f"ffn.block.{name}", f"mlp.{name}_proj") for name in GLU_NAMES),
    *(Rename(f"ffn.block.shared.{name}", f"mlp.shared_experts.{name}_proj") for name in GLU_NAMES),
    Rename("ffn.block.router", "mlp.gate"),
    # One tensor per expert in released files; one for all experts in files that transformers 5 writes of its modules.
    *(Stacked(f"ffn.block.experts.{name}", f"mlp.experts.{{e}}.{name}_proj.weight") for name in GLU_NAMES),
    stacked_gate_up("mlp.experts.gate_up_proj"),
    Rename("ffn.block.experts.down", "mlp.experts.down_proj"),
    # Multimodal wrappers: only the text part is loaded.
    Skipped("vision_tower.*", "the vision tower"),
    Skipped("model.vision_tower.*", "the vision tower"),
    Skipped("multi_modal_projector.*", "the vision projector"),
    Skipped("model.multi_modal_projector.*", "the vision projector"),
    # Buffers that older versions of transformers stored.
    Skipped("model.layers.{i}.self_attn.rotary_emb.inv_freq", "rotary frequencies, which follow from the config"),
    Skipped("model.rotary_emb.inv_freq", "rotary frequencies, which follow from the config"),
)
# Prefixes of the text part's names in a multimodal wrapper, older and newer spelling -> the prefix without a wrapper.
WRAPPERS = {"language_model.model.": "model.", "language_model.lm_head.": "lm_head.", "model.language_model.": "model."}
