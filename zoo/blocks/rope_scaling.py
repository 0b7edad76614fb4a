"""Scalings: changes of the rotary frequencies that extend the context of a trained model."""

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from zoo.facts import Fact
from zoo.registry import Spec

__all__ = [
    "LinearScaling",
    "Llama3Scaling",
    "LongRoPE",
    "Scaling",
    "YarnScaling",
    "longrope_gain",
    "yarn_gain",
]


class Scaling(Spec, abstract=True):
    """A change of the rotary frequencies that extends the context of a trained model."""

    role = "scaling"
    gain: float = 1.0  # multiplies cos and sin; scores are therefore multiplied by gain^2

    @abstractmethod
    def scale(self, periods: Tensor, theta: float) -> Tensor:
        """Periods (pairs,) in tokens per radian, shortest first -> scaled frequencies (pairs,) in radians per token.
        The result is (sets, pairs) if `select` chooses one of several sets in each forward pass."""

    def select(self, scaled: Tensor, positions: Tensor) -> Tensor:
        """Frequencies from `scale` -> frequencies (pairs,) for a forward pass of tokens at `positions` (t,)."""
        return scaled

    def gain_facts(self) -> tuple[Fact, ...]:
        """Returns a fact about the gain on cos and sin, unless the gain is 1."""
        noun = "gain on cos and sin"
        return () if self.gain == 1 else (Fact("gain", self.gain, phrase=f"{noun} {{:g}}", noun=noun),)

    def describe(self) -> str:
        return " ".join(str(fact) for fact in self.facts() if fact.key in ("kind", "factor", "original"))

    def check_rotated(self, rotated: int) -> None:
        """Raises SpecError if heads with this many rotated elements cannot be scaled."""

    def at_rotated(self, rotated: int) -> Self:
        """Returns this scaling for heads with this many rotated elements."""
        return self

    @property
    def switch(self) -> int | None:
        """The number of tokens beyond which a forward pass uses other frequencies; None if they never change."""
        return None


@dataclass(frozen=True)
class LinearScaling(Scaling):
    """Divides all positions by `factor` (Chen et al. 2023, section 2.3)."""

    factor: float

    def scale(self, periods: Tensor, theta: float) -> Tensor:
        return 1.0 / periods / self.factor

    def facts(self) -> tuple[Fact, ...]:
        return Fact("kind", "linear"), Fact("factor", self.factor, phrase="x{:g}")


@dataclass(frozen=True)
class Llama3Scaling(Scaling):
    """Divides frequencies with wavelengths above original / low by `factor`, and keeps frequencies with wavelengths
    below original / high. Frequencies between these limits are interpolated (Llama 3.1, as released). If low = high, no
    frequency lies between the limits (Llama 4 Scout)."""

    factor: float
    original: int
    low: float = 1.0
    high: float = 4.0

    def check(self) -> None:
        self.require(self.low <= self.high, f"low={self.low} is above high={self.high}")

    def scale(self, periods: Tensor, theta: float) -> Tensor:
        frequencies = 1.0 / periods
        wavelengths = 2 * math.pi / frequencies
        if self.low == self.high:
            blend = (wavelengths <= self.original / self.high).to(frequencies.dtype)
        else:
            turns = self.original / wavelengths  # full turns within the original context
            blend = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return (1 - blend) * frequencies / self.factor + blend * frequencies

    def facts(self) -> tuple[Fact, ...]:
        sizes = Fact("factor", self.factor, phrase="x{:g}"), Fact("original", self.original, "tokens", "from {}")
        return Fact("kind", "Llama 3"), *sizes


@dataclass(frozen=True)
class YarnScaling(Scaling):
    """YaRN (Peng et al. 2023, section 3.2). Dimensions that rotate at least `fast` times within the original context
    keep their frequencies. The frequencies of dimensions that rotate at most `slow` times are divided by `factor`. In
    between, a linear ramp blends the two.

    `truncate` rounds the ramp's ends outward to whole dimensions. `gain` multiplies cos and sin (section 3.3:
    `yarn_gain`). DeepSeek's gain is 1.0, because it applies YaRN's gain in its attention scale.
    """

    factor: float
    original: int
    gain: float
    fast: float = 32.0
    slow: float = 1.0
    truncate: bool = True

    def scale(self, periods: Tensor, theta: float) -> Tensor:
        frequencies, half = 1.0 / periods, len(periods)

        def dimension(turns: float) -> float:
            return half * math.log(self.original / (turns * 2 * math.pi)) / math.log(theta)

        low, high = dimension(self.fast), dimension(self.slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * half - 1)
        dimensions = torch.arange(half, dtype=frequencies.dtype, device=frequencies.device)
        ramp = (dimensions - low) / (high - low if high != low else 0.001)
        keep = 1 - ramp.clamp(0, 1)
        return frequencies / self.factor * (1 - keep) + frequencies * keep

    def facts(self) -> tuple[Fact, ...]:
        sizes = Fact("factor", self.factor, phrase="x{:g}"), Fact("original", self.original, "tokens", "from {}")
        ramp = Fact("truncate", phrase="unrounded ramp")
        return *self.in_use(Fact("kind", "YaRN"), *sizes, ramp), *self.gain_facts()


def yarn_gain(factor: float, mscale: float = 1.0) -> float:
    """Returns YaRN's gain on cos and sin (Peng et al. 2023, equation 22): 0.1 * mscale * ln(factor) + 1."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


@dataclass(frozen=True)
class LongRoPE(Scaling):
    """Divides the frequency of each pair by a factor of its own, which was found by search (LongRoPE, Ding et al. 2024,
    section 3). A forward pass whose positions are all within the `original` context uses the factors in `short`; a pass
    that goes beyond it uses those in `long`. `gain` multiplies cos and sin in both cases (`longrope_gain`).

    As in the reference, the largest position of each forward pass decides, and cached keys keep the rotation of an
    earlier pass. For a sequence within `original`, logits therefore do not depend on how it is split into passes. For a
    longer sequence they do: a single pass rotates every key by the long factors, but earlier passes within `original`
    leave keys with the short factors in the cache. The reference does the same: equal splits give equal logits.
    `Model.stream` recomputes the cache at the first token beyond `original`, as the reference's `generate` does.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original: int
    gain: float

    # In a tiny model every pass beyond position 0 uses the long factors, so that passes of all lengths agree.
    toy: ClassVar = {"original": 1}

    def check(self) -> None:
        lengths = len(self.short), len(self.long)
        self.require(len(set(lengths)) == 1, f"short has {lengths[0]} factors, long {lengths[1]}")

    def check_rotated(self, rotated: int) -> None:
        fits = len(self.short) == (rotated + 1) // 2
        self.require(fits, f"{len(self.short)} factors for {rotated} rotated elements: one for each pair is needed")

    def scale(self, periods: Tensor, theta: float) -> Tensor:
        factors = torch.tensor([self.short, self.long], dtype=periods.dtype, device=periods.device)
        return 1.0 / (factors * periods)  # rounded as in the reference

    def select(self, scaled: Tensor, positions: Tensor) -> Tensor:
        short, long = scaled
        return torch.where((positions >= self.original).any(), long, short)  # no branch, so that it compiles

    @property
    def switch(self) -> int | None:
        return self.original

    def at_rotated(self, rotated: int) -> Self:
        """Returns this scaling for heads with another number of rotated elements. Each new pair gets the factors of the
        present pair with nearly the same frequency: pair i of n rotates by theta^(-i / n)."""
        pairs = (rotated + 1) // 2
        chosen = [pair * len(self.short) // pairs for pair in range(pairs)]
        short, long = (tuple(factors[i] for i in chosen) for factors in (self.short, self.long))
        return replace(self, short=short, long=long)

    def facts(self) -> tuple[Fact, ...]:
        return Fact("kind", "LongRoPE"), Fact("original", self.original, "tokens", "{}"), *self.gain_facts()


def longrope_gain(factor: float, original: int) -> float:
    """Returns LongRoPE's gain for a context `factor` times the original one: sqrt(1 + ln(factor) / ln(original))."""
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
