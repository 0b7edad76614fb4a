"""Maps the zoo's parameters to the tensors of Hugging Face checkpoints, by rules that work in both directions.

A rule connects parameters of the modules with tensors of the checkpoint. In a layer, the names are local:
"attn.block.q" is stored as "self_attn.q_proj", after a `LayerPrefix` and the layer's number. Outside the layers, the
names are full. The name of a module stands for its weight and its bias. `COMMON` holds the rules that architectures
share. The `WEIGHTS` of an architecture hold its other rules, and take precedence.

The modules store the gate and up of experts as (experts, hidden, dim), and their down as (experts, dim, hidden).
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
    """A rule that stores parameters `module_names` as tensors `checkpoint_names`, in which "{e}" stands for an expert's
    number.

    The methods take `layer`, the spec of the parameters' layer, which is None outside the layers. A rule with a `mixer`
    applies only in layers with that kind of mixer.
    """

    module_names: str | tuple[str, ...]
    checkpoint_names: str
    mixer: type[Mixer] | None = field(default=None, kw_only=True)

    def applies(self, layer: Layer | None) -> bool:
        """Whether the rule applies to parameters of this layer."""
        return self.mixer is None or (layer is not None and isinstance(layer.mixer, self.mixer))

    @abstractmethod
    def read(self, stored: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        """Converts stored tensors to parameters. It indexes each stored tensor only once, since each indexing may read
        the file."""

    @abstractmethod
    def write(self, parameters: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        """Converts parameters to stored tensors; the inverse of `read`. Meta tensors give the stored shapes."""

    def stored_rows(
        self, parameter: int, dim: int, rows: Tensor, shape: Sequence[int], layer: Layer | None
    ) -> tuple[int, Tensor]:
        """Finds the part of a stored tensor, of this shape, that contains the given rows along a dimension of a
        parameter.

        Returns a dimension of the stored tensor, and the rows along it in stored order. `read` converts this part of
        the stored tensor to that part of the parameter.
        """
        if dim:
            return dim, rows  # most rules move rows of the first dimension only
        return 0, self.read([torch.arange(shape[0])], layer)[parameter][rows].sort().values

    def fill(self, parameters: Sequence[Tensor], stored: Sequence[Tensor], layer: Layer | None) -> None:
        """Reads the stored tensors into allocated parameters, while it holds as few of them in memory as possible."""
        for parameter, value in zip(parameters, self.read(stored, layer), strict=True):
            parameter.copy_(value)


class Rename(Rule):
    """Stores a parameter unchanged, under another name."""

    def read(self, stored: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        return stored

    def write(self, parameters: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        return parameters


class Stacked(Rule):
    """Stores each expert in its own tensor; the parameter stacks all experts."""

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


FUSED_AXES = {"gate_up": 2, "qkv": 3}  # axis that holds several parameters -> their number


@dataclass(frozen=True)
class Rearranged(Rule):
    """Stores one or more parameters in a single tensor with another layout. `pattern` is an einops pattern from the
    stored axes to the parameters' axes.

    An axis `gate_up` holds two parameters, an axis `qkv` three. "e (gate_up hidden) dim -> gate_up e hidden dim"
    describes all rows of gate before all rows of up; "(hidden gate_up)" describes alternating rows.
    """

    pattern: str

    @property
    def _fused(self) -> dict[str, int]:
        """Returns those of the FUSED_AXES that the pattern contains."""
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
        # In other dimensions, only the axes that hold several parameters need their full size.
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
        # `read` returns views of the new tensor, which are written to. torch.stack would copy twice. For meta tensors
        # it imports the compiler, which takes a second and 60 MB.
        first, number = parameters[0].detach(), len(parameters)
        stored = first.new_empty(rearrange(first.to("meta").expand(number, *first.shape), inverse).shape)
        for view, parameter in zip(self.read([stored], layer), parameters, strict=True):
            view.copy_(parameter.detach())
        return [stored]


def _axes(side: str) -> list[list[str]]:
    """Returns the names of the axes in each dimension, for one side of an einops pattern."""
    return [group.strip("()").split() for group in re.findall(r"\([^)]*\)|\S+", side)]


@dataclass(frozen=True)
class PackedRows(Rule):
    """Stores the rows of several parameters in one tensor, divided into groups of heads.

    The mixer's field `groups` holds the number of groups (None: one group). `sections` returns, for a mixer, the number
    of rows in each section of each parameter, summed over all groups. A parameter holds its first section for all
    groups, then the next section. The stored tensor holds all sections of the first group, then of the next.
    """

    groups: str | None
    sections: Callable[[Any], tuple[tuple[int, ...], ...]]

    def _shape(self, layer: Layer | None) -> tuple[int, tuple[tuple[int, ...], ...]]:
        """Returns the number of groups, and the number of rows in each section of each parameter."""
        assert layer is not None
        return getattr(layer.mixer, self.groups) if self.groups else 1, self.sections(layer.mixer)

    def read(self, stored: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        groups, sections = self._shape(layer)
        shares = [rows // groups for each in sections for rows in each]
        pieces = iter(stored[0].unflatten(0, (groups, -1)).split(shares, dim=1))
        parameters = ([next(pieces).flatten(0, 1) for _ in each] for each in sections)
        # A parameter of a single section is not copied here; with a single group it stays a view of the file.
        return [torch.cat(each) if len(each) > 1 else each[0] for each in parameters]

    def write(self, parameters: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        groups, sections = self._shape(layer)
        pairs = zip(parameters, sections, strict=True)
        pieces = [piece.unflatten(0, (groups, -1)) for rows, each in pairs for piece in rows.detach().split(each)]
        return [torch.cat(pieces, dim=1).flatten(0, 1)]


def fused_qkv(checkpoint_name: str) -> PackedRows:
    """Returns the rule for a tensor that stores the rows of the queries, then of the keys, then of the values."""
    names = ("attn.block.q", "attn.block.k", "attn.block.v")
    return PackedRows(names, checkpoint_name, None, _qkv_rows)


def _qkv_rows(attn: GQA) -> tuple[tuple[int, ...], ...]:
    return (attn.heads * attn.head_dim,), (attn.kv_heads * attn.head_dim,), (attn.kv_heads * attn.value_dim,)


@dataclass(frozen=True)
class PairedRows(Rule):
    """Reorders rotary rows: the checkpoint rotates rows 2j and 2j + 1 of a head as a pair, the module rows j and j +
    half.

    `widths` returns three numbers of rows in a head for a mixer: before the rotary rows, rotary, and after them. With
    `axis` -1, the columns of a matrix (or bias) on the heads' output are reordered instead.
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
        """Returns, for each row of the parameter, its row in the checkpoint: a tensor of shape (rows,)."""
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
    """Leaves stored tensors unread whose whole name matches `pattern`. `what` describes their content.

    In the pattern, "*" stands for any text, "{i}" for any number, and "{layers}" for the number of layers. With a
    `mixer`, "{i}" stands only for the numbers of layers with that kind of mixer.
    """

    pattern: str
    what: str
    mixer: type[Mixer] | None = field(default=None, kw_only=True)

    def matcher(self, layers: Sequence[Layer]) -> re.Pattern[str]:
        """Returns the compiled pattern for models with these layers; use it with `fullmatch`."""
        number = r"\d+"
        if self.mixer is not None:
            of_mixer = [str(i) for i, layer in enumerate(layers) if isinstance(layer.mixer, self.mixer)]
            number = f"(?:{'|'.join(of_mixer)})" if of_mixer else "(?!)"  # (?!) never matches
        stands = {"*": ".*", "{i}": number, "{layers}": str(len(layers))}
        pieces = re.split(r"(\*|\{\w+\})", self.pattern)
        return re.compile("".join(stands[each] if i % 2 else re.escape(each) for i, each in enumerate(pieces)))


@dataclass(frozen=True)
class LayerPrefix:
    """The prefix of layers' names in the checkpoint: names in layer 3 begin with `prefix` followed by "3."."""

    prefix: str


@dataclass(frozen=True)
class ReadAs:
    """Reads stored names that begin with `prefix` as if they began with `instead`. Checkpoints of a model without its
    head lack the first part of each name."""

    prefix: str
    instead: str


Rules = tuple[Rule | Skipped | LayerPrefix | ReadAs, ...]

GATE_UP = ("ffn.block.experts.gate", "ffn.block.experts.up")
GLU_NAMES = ("gate", "up", "down")
NUMBERED = dict(gate="w1", up="w3", down="w2")  # the names of a GLU's matrices in many releases


def stacked_gate_up(checkpoint_name: str, experts: str = "ffn.block.experts") -> Rearranged:
    """Returns the rule for one tensor of all experts: for each expert, the rows of gate, then those of up."""
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
    # Released files have one tensor per expert. Files that transformers 5 writes can have one tensor for all experts.
    *(Stacked(f"ffn.block.experts.{name}", f"mlp.experts.{{e}}.{name}_proj.weight") for name in GLU_NAMES),
    stacked_gate_up("mlp.experts.gate_up_proj"),
    Rename("ffn.block.experts.down", "mlp.experts.down_proj"),
    # Multimodal wrappers: only the text part is read.
    Skipped("vision_tower.*", "the vision tower"),
    Skipped("model.vision_tower.*", "the vision tower"),
    Skipped("multi_modal_projector.*", "the vision projector"),
    Skipped("model.multi_modal_projector.*", "the vision projector"),
    # Buffers that older versions of transformers stored.
    Skipped("model.layers.{i}.self_attn.rotary_emb.inv_freq", "rotary frequencies, which follow from the config"),
    Skipped("model.rotary_emb.inv_freq", "rotary frequencies, which follow from the config"),
)
# Prefix of the text part's names in a multimodal wrapper (older, newer spelling) -> prefix without a wrapper.
WRAPPERS = {"language_model.model.": "model.", "language_model.lm_head.": "lm_head.", "model.language_model.": "model."}
