"""Position encodings: rotary embedding (Su et al. 2021), none (NoPE), learned embeddings, temperatures by position.

Rotated pairs are (i, i + rotated/2), the half-split order of most checkpoints. Other orders are permuted on loading.
"""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from zoo.blocks.rope_scaling import Scaling
from zoo.core.forward_context import keep
from zoo.costs import Breakdown
from zoo.facts import Fact
from zoo.registry import Block, Spec
from zoo.units import format_count

__all__ = [
    "LearnedPositions",
    "LogTemperature",
    "NoPE",
    "Position",
    "ProportionalRoPE",
    "RoPE",
    "Temperature",
]

# Cosine and sine for each rotated element, both (t, rotated), in at least float32. The first half of sin is negated.
Table = tuple[Tensor, Tensor]


class Position(Spec, abstract=True):
    """A position encoding of queries and keys by a table that is computed once per forward pass."""

    role = "rope"
    keeps_hash = False
    encodes: ClassVar[bool] = True  # whether `rotate` depends on the position

    @abstractmethod
    def table(self, positions: Tensor, width: int, dtype: torch.dtype = torch.float32) -> Table | None:
        """Positions (t,) -> the table with which `rotate` encodes heads of this `width`, in float32 or float64."""

    @abstractmethod
    def rotate(self, x: Tensor, table: Table | None) -> Tensor:
        """(..., t, width) -> the same shape, with positions encoded."""

    @abstractmethod
    def inverse(self, table: Table | None) -> Table | None:
        """Returns the table of the inverse rotation."""

    def rotate_last(self, x: Tensor, table: Table | None, width: int) -> Tensor:
        """Rotates only the last `width` elements of each head, with a table for heads of that width."""
        if width == x.shape[-1]:
            return self.rotate(x, table)
        before, last = x.split([x.shape[-1] - width, width], dim=-1)
        return torch.cat([before, self.rotate(last, table)], dim=-1)

    def at_width(self, width: int) -> Self:
        """Returns this encoding for heads of this width."""
        return self

    @property
    def switch(self) -> int | None:
        """The number of tokens beyond which a forward pass uses other angles, so that keys cached by shorter passes are
        out of date. None if the angles never change."""
        return None


@dataclass(frozen=True)
class NoPE(Position):
    """No position encoding: order comes from the causal mask alone (Kazemnejad et al. 2023)."""

    encodes = False

    def table(self, positions: Tensor, width: int, dtype: torch.dtype = torch.float32) -> Table | None:
        return None

    def rotate(self, x: Tensor, table: Table | None) -> Tensor:
        return x

    def inverse(self, table: Table | None) -> Table | None:
        return None

    def facts(self) -> tuple[Fact, ...]:
        return (Fact("kind", "NoPE"),)


@dataclass(frozen=True)
class RoPE(Position):
    """Pair i of `rotated / 2` rotates by theta^(-2i / rotated) radians per token.

    The leading `fraction` of the width is rotated. The remaining elements have no position (GPT-NeoX, Black et al.
    2022, section 2.2).
    """

    theta: float
    scaling: Scaling | None = None
    fraction: float = 1.0

    def check(self) -> None:
        self.require(self.theta > 1, f"theta={self.theta:g} must be above 1")
        self.require(self.fraction <= 1, f"fraction={self.fraction:g} is above 1")

    def at_width(self, width: int) -> Self:
        return replace(self, scaling=self.scaling.at_rotated(self.rotated(width))) if self.scaling else self

    def check_width(self, width: int) -> None:
        if self.scaling:
            self.scaling.check_rotated(self.rotated(width))

    @property
    def switch(self) -> int | None:
        return self.scaling.switch if self.scaling else None

    def rotated(self, width: int) -> int:
        """The number of rotated elements of a head of this width."""
        return int(width * self.fraction)

    def table(self, positions: Tensor, width: int, dtype: torch.dtype = torch.float32) -> Table | None:
        frequencies = _frequencies(self, self.rotated(width), positions.device, dtype)
        if self.scaling:
            frequencies = self.scaling.select(frequencies, positions)
        angles = positions.to(dtype)[:, None] * frequencies
        cos, sin = angles.cos(), angles.sin()
        if self.scaling and self.scaling.gain != 1.0:
            cos, sin = cos * self.scaling.gain, sin * self.scaling.gain
        return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)

    def rotate(self, x: Tensor, table: Table | None) -> Tensor:
        assert table is not None
        cos, sin = table
        whole = cos.shape[-1] == x.shape[-1]
        turned, rest = (x, None) if whole else x.split([cos.shape[-1], x.shape[-1] - cos.shape[-1]], dim=-1)
        first, second = turned.chunk(2, dim=-1)
        rotated = turned * cos + torch.cat([second, first], dim=-1) * sin
        rotated = rotated.to(x.dtype)  # the rotation is computed in the table's dtype
        return rotated if rest is None else torch.cat([rotated, rest], dim=-1)

    def inverse(self, table: Table | None) -> Table | None:
        assert table is not None
        return table[0], -table[1]

    def resized(self, to: Any) -> dict[str, Any]:
        return {"theta": to.theta(self), "scaling": None}

    rotated_of: ClassVar[str] = "width"  # the whole of which `fraction` is rotated

    def facts(self) -> tuple[Fact, ...]:
        part = f"on {{:g}} of the {self.rotated_of}"
        return self.in_use(
            *(Fact("kind", "RoPE"), Fact("theta", format_count(self.theta))),
            Fact("fraction", self.fraction, phrase=part, noun="rotated fraction"),
            Fact("scaling", self.scaling),
        )

    def describe(self) -> str:
        return " ".join(f"({fact})" if fact.key == "scaling" else str(fact) for fact in self.facts())

    def frequencies(self, rotated: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns (rotated / 2,) radians per token, highest first; (sets, rotated / 2) if the scaling has several sets.

        They are in float64 for float64 models and otherwise in float32, as in released models: exact powers would
        change angles at position 100,000 by 0.01 radians. They are computed on the CPU, to be equal on every device.
        """
        exponents = torch.arange(0, rotated, 2, dtype=dtype, device="cpu") / rotated
        periods = self.theta**exponents
        return self.scaling.scale(periods, self.theta) if self.scaling else 1.0 / periods


@dataclass(frozen=True)
class ProportionalRoPE(RoPE):
    """RoPE on pairs (i, i + width/2) of the whole width. Only the first `fraction` of the pairs rotates, by the angles
    of full RoPE: theta^(-2i / width). The remaining, slowest pairs have no position (Gemma 4)."""

    def rotated(self, width: int) -> int:
        return width

    def frequencies(self, rotated: int, dtype: torch.dtype = torch.float32) -> Tensor:
        frequencies = super().frequencies(rotated, dtype)
        frequencies[..., int(self.fraction * rotated // 2) :] = 0.0
        return frequencies

    rotated_of = "pairs"


@dataclass(frozen=True)
class LearnedPositions(Block):
    """A learned embedding of each of `count` positions, added to the token embeddings (GPT-2; Vaswani et al. 2017,
    section 3.5). A sequence has at most `count` tokens."""

    count: int

    role = "positions"

    def build(self, dim: int) -> nn.Module:
        return nn.Embedding(self.count, dim, _weight=torch.empty(self.count, dim))

    def params(self, dim: int) -> int:
        return self.count * dim

    def flop_breakdown(self, dim: int, past: int, new: int, causal: bool = True) -> Breakdown:
        return {}  # a lookup

    def facts(self) -> tuple[Fact, ...]:
        return (Fact("count", self.count, "learned positions"),)


class Temperature(Spec, abstract=True):
    """A factor that multiplies queries and depends on their position."""

    role = "temperature"

    @abstractmethod
    def table(self, positions: Tensor, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Positions (t,) -> factors (t, 1), in float32 or float64."""


@dataclass(frozen=True)
class LogTemperature(Temperature):
    """1 + scale * ln(1 + floor(position / step)). It is 1 for the first `step` positions and then grows
    logarithmically, to keep attention over many keys sharp (Llama 4; Nakanishi 2025, "Scalable-Softmax", section 2).

    `from_one` counts positions from one, as Llama 4 does.
    """

    scale: float
    step: int
    from_one: bool = False

    def table(self, positions: Tensor, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
        steps = torch.floor((positions.to(dtype) + (1.0 if self.from_one else 0.0)) / self.step)
        return (1.0 + self.scale * torch.log1p(steps)).unsqueeze(-1)

    def resized(self, to: Any) -> dict[str, Any]:
        return {"step": to.window(self.step)}

    def facts(self) -> tuple[Fact, ...]:
        return (Fact("kind", (self.scale, self.step), phrase="queries x(1 + {:g} ln(1 + position/{:,}))"),)


_KEPT: dict[tuple[RoPE, int, torch.device, torch.dtype], Tensor] = {}


def _frequencies(rope: RoPE, rotated: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Returns `rope.frequencies(rotated, dtype)` on a device, computed once and then cached."""
    key = rope, rotated, device, dtype
    return _KEPT[key] if key in _KEPT else keep(_KEPT, key, lambda: rope.frequencies(rotated, dtype).to(device))
