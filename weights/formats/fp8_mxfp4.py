"""Tensors stored as small codes beside the scales that multiply them: what a format of these is, and its pairs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from weights.matching import Entry, listed
from zoo.errors import MalformedError
from zoo.hf.fields import Fields

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Packed:
    """One tensor of numbers, stored as two: `codes`, by whose name it goes, and `scales`."""

    codes: Entry
    scales: Entry
    shape: Shape

    @property
    def plain(self) -> Entry:
        """The tensor that comes of them."""
        return Entry(self.codes.name, self.shape, torch.float32)


class Format(ABC):
    """A way to pack. A tensor of `dtype` whose name ends in `codes` is packed; its scales' name ends in `scales`."""

    words: ClassVar[str]
    codes: ClassVar[str]
    scales: ClassVar[str]
    dtype: ClassVar[torch.dtype]
    scale_dtypes: ClassVar[frozenset[torch.dtype]]

    @abstractmethod
    def check_config(self, said: Fields) -> None:
        """Read all fields of quantization_config. Raises MalformedError where they say another format."""

    @abstractmethod
    def unpacked_shape(self, codes: Shape) -> Shape | None:
        """Shape of the codes -> that of the numbers, None if they cannot be codes."""

    @abstractmethod
    def scales_shape(self, codes: Shape) -> Shape:
        """Shape of the codes -> that of their scales."""

    @abstractmethod
    def unpack(self, codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        """The numbers, on the device of the codes: exact products, rounded once to float32 and then to `dtype`."""

    def pairs(self, where: Path, entries: Iterable[Entry]) -> dict[str, Packed]:
        """The packed tensors of a source, by name.

        Raises one MalformedError naming every code without scales, scale without codes, and shape that cannot be.
        """
        stored = {entry.name: entry for entry in entries}
        named = {name: self._scales_of(name) for name, entry in stored.items() if self._is_packed(entry)}
        told = [
            ("without scales", [name for name, scales in named.items() if scales not in stored]),
            (
                f"scales without {self.words}",
                [name for name in stored if name.endswith(self.scales) and name not in named.values()],
            ),
            ("wrong shape", [line for name in named for line in self._misshapen(stored, name)]),
        ]
        if any(lines for _, lines in told):
            lines = "; ".join(f"{what}: {listed(lines)}" for what, lines in told if lines)
            raise MalformedError(f"{where}: the packed tensors ({self.words}) cannot be read; {lines}")
        return {
            name: Packed(stored[name], stored[scales], self.unpacked_shape(stored[name].shape) or ())
            for name, scales in named.items()
        }

    def _is_packed(self, entry: Entry) -> bool:
        return entry.dtype == self.dtype and entry.name.endswith(self.codes)

    def _scales_of(self, name: str) -> str:
        return name.removesuffix(self.codes) + self.scales

    def _misshapen(self, stored: dict[str, Entry], name: str) -> Iterator[str]:
        codes, scales = stored[name], stored.get(self._scales_of(name))
        if self.unpacked_shape(codes.shape) is None:
            yield f"{name} {list(codes.shape)}"
        elif scales is not None and scales.shape != (shape := self.scales_shape(codes.shape)):
            yield f"{scales.name} {list(scales.shape)} instead of {list(shape)}"
        elif scales is not None and scales.dtype not in self.scale_dtypes:
            yield f"{scales.name} of another dtype than {_words(self.scale_dtypes)}"


def _words(dtypes: Iterable[torch.dtype]) -> str:
    return " or ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
