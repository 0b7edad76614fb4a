"""How Hugging Face checkpoints store our parameters: a table of rules that run both ways.

A rule ties parameters of ours to tensors of theirs. Names are local to a layer ("attn.block.q" is stored as
"self_attn.q_proj"), or full outside the layers; a module's name stands for its weight and its bias. `COMMON` holds what
the architectures share. An architecture's `WEIGHTS` holds what is odd about it, and is looked at first.

We hold the experts' gate and up as (experts, hidden, dim), and down as (experts, dim, hidden).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from zoo.blocks.layer import Layer


@dataclass(frozen=True)
class Rule(ABC):
    """Parameters `ours` are stored as tensors `theirs`, where "{e}" stands for each expert's number."""

    ours: str | tuple[str, ...]
    theirs: str

    @abstractmethod
    def read(self, theirs: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        """Stored tensors -> our parameters. Each of `theirs` may be read from a file when it is looked at: a rule looks
        at each once."""

    @abstractmethod
    def write(self, ours: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        """Our parameters -> the tensors to store. The inverse of `read`, and on meta tensors the shapes to expect."""

    def fill(self, ours: Sequence[Tensor], theirs: Sequence[Tensor], layer: Layer | None) -> None:
        """`read` into memory that is there already, holding no more of `theirs` at a time than it must."""
        for parameter, value in zip(ours, self.read(theirs, layer), strict=True):
            parameter.copy_(value)


def _stacked(parts: Sequence[Tensor], dim: int) -> Tensor:
    """torch.stack, which for meta tensors imports the compiler: a second and 60 MB."""
    first = parts[0]
    whole = first.new_empty(*first.shape[:dim], len(parts), *first.shape[dim:])
    for i, part in enumerate(parts):
        whole.select(dim, i).copy_(part)
    return whole


class Rename(Rule):
    """The same tensor under another name."""

    def read(self, theirs: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        return theirs

    def write(self, ours: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        return ours


class Stacked(Rule):
    """One tensor an expert, ours stacked."""

    def read(self, theirs: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        return [torch.stack(list(theirs))]

    def fill(self, ours: Sequence[Tensor], theirs: Sequence[Tensor], layer: Layer | None) -> None:
        for place, expert in zip(ours[0], theirs, strict=True):
            place.copy_(expert)

    def write(self, ours: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        return ours[0].unbind()


class Halves(Rule):
    """Gate rows, then up rows, in one tensor (experts, 2 * hidden, dim)."""

    def read(self, theirs: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        return theirs[0].chunk(2, dim=1)

    def write(self, ours: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        return [_stacked(ours, 1).flatten(1, 2)]


class Transposed(Rule):
    """The last two axes exchanged, as in x @ W."""

    def read(self, theirs: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        return [theirs[0].mT]

    def write(self, ours: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        return [ours[0].mT]


class Interleaved(Rule):
    """Gate and up by turns along the last axis."""

    def read(self, theirs: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        both = theirs[0]
        return [both[..., 0::2], both[..., 1::2]]

    def write(self, ours: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        return [_stacked(ours, ours[0].ndim).flatten(-2)]


class InterleavedRows(Rule):
    """Gate and up by turns along the rows of (experts, 2 * hidden, dim)."""

    def read(self, theirs: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        both = theirs[0]
        return [both[:, 0::2], both[:, 1::2]]

    def write(self, ours: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        return [_stacked(ours, 2).flatten(1, 2)]


class InterleavedTransposed(Interleaved):
    """Gate and up by turns along the last axis of (experts, dim, 2 * hidden)."""

    def read(self, theirs: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        return [part.mT for part in super().read(theirs, layer)]

    def write(self, ours: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        return super().write([part.mT for part in ours], layer)


@dataclass(frozen=True)
class PairedRows(Rule):
    """Rows of each head: `plain` ones, then those that are `turned` by position, counted by the mixer's fields of these
    names. Theirs turns rows 2j and 2j + 1 as a pair, ours rows j and j + half.
    """

    plain: str
    turned: str

    def read(self, theirs: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        rows = theirs[0]
        return [rows.index_select(0, self._order(len(rows), layer).to(rows.device))]

    def write(self, ours: Sequence[Tensor], layer: Layer | None) -> Sequence[Tensor]:
        rows = ours[0]
        return [rows.index_select(0, self._order(len(rows), layer).argsort().to(rows.device))]

    def _order(self, rows: int, layer: Layer | None) -> Tensor:
        """Which row of theirs each row of ours is."""
        assert layer is not None
        plain, turned = getattr(layer.mixer, self.plain), getattr(layer.mixer, self.turned)
        heads = rearrange(torch.arange(rows), "(h rows) -> h rows", rows=plain + turned)
        moved = rearrange(heads[:, plain:], "h (pair side) -> h (side pair)", side=2)
        return torch.cat([heads[:, :plain], moved], dim=1).flatten()


@dataclass(frozen=True)
class Skipped:
    """Stored tensors whose whole name is of this `pattern` are left alone: they hold `what`.

    In a pattern "*" stands for any text, "{i}" for any number, and "{layers}" for the number of layers.
    """

    pattern: str
    what: str

    def matcher(self, layers: int) -> re.Pattern[str]:
        """What `fullmatch`es such names in a checkpoint of so many layers."""
        stands = {"*": ".*", "{i}": r"\d+", "{layers}": str(layers)}
        pieces = re.split(r"(\*|\{\w+\})", self.pattern)
        return re.compile("".join(stands[each] if i % 2 else re.escape(each) for i, each in enumerate(pieces)))


Rules = tuple[Rule | Skipped, ...]

GATE_UP = ("ffn.block.experts.gate", "ffn.block.experts.up")
COMMON: Rules = (
    Rename("embed", "model.embed_tokens"),
    Rename("norm", "model.norm"),
    Rename("head", "lm_head"),
    Rename("attn.pre", "input_layernorm"),
    Rename("attn.post", "post_attention_layernorm"),
    Rename("ffn.pre", "post_attention_layernorm"),
    Rename("ffn.post", "post_feedforward_layernorm"),
    Rename("attn.block.q", "self_attn.q_proj"),
    Rename("attn.block.k", "self_attn.k_proj"),
    Rename("attn.block.v", "self_attn.v_proj"),
    Rename("attn.block.o", "self_attn.o_proj"),
    Rename("attn.block.q_norm", "self_attn.q_norm"),
    Rename("attn.block.k_norm", "self_attn.k_norm"),
    Rename("attn.block.sinks", "self_attn.sinks"),
    Rename("ffn.block.gate", "mlp.gate_proj"),
    Rename("ffn.block.up", "mlp.up_proj"),
    Rename("ffn.block.down", "mlp.down_proj"),
    Rename("ffn.block.router", "mlp.gate"),
    Rename("ffn.block.shared.gate", "mlp.shared_experts.gate_proj"),
    Rename("ffn.block.shared.up", "mlp.shared_experts.up_proj"),
    Rename("ffn.block.shared.down", "mlp.shared_experts.down_proj"),
    # A tensor for each expert on disk; one for all in files written from the module tree of transformers 5.
    Stacked("ffn.block.experts.gate", "mlp.experts.{e}.gate_proj.weight"),
    Stacked("ffn.block.experts.up", "mlp.experts.{e}.up_proj.weight"),
    Stacked("ffn.block.experts.down", "mlp.experts.{e}.down_proj.weight"),
    Halves(GATE_UP, "mlp.experts.gate_up_proj"),
    Rename("ffn.block.experts.down", "mlp.experts.down_proj"),
    # Multimodal wrappers: the text part is read.
    Skipped("vision_tower.*", "the vision tower"),
    Skipped("model.vision_tower.*", "the vision tower"),
    Skipped("multi_modal_projector.*", "the vision projector"),
    Skipped("model.multi_modal_projector.*", "the vision projector"),
    # Buffers that older versions of transformers stored: they follow from the config.
    Skipped("model.layers.{i}.self_attn.rotary_emb.inv_freq", "rotary frequencies, which the config says"),
    Skipped("model.rotary_emb.inv_freq", "rotary frequencies, which the config says"),
)
# How a wrapper's names of the text part begin, in the older and the newer spelling, and what they are without it.
WRAPPERS = {"language_model.model.": "model.", "language_model.lm_head.": "lm_head.", "model.language_model.": "model."}
