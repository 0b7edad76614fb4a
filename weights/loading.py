"""From a source of weights to a model: all parameters filled and all tensors accounted for, or one error."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from weights.formats.hf_folder import WORDS, Folder
from weights.formats.unpacked import unpacked
from weights.matching import EMBED, HEAD, Entry, TensorMapping, check, listed, match, skipped, text_names
from weights.sources import locate
from zoo import catalog
from zoo.errors import MalformedError, UsageError, require_package, unknown
from zoo.hf.checkpoint_layout import Rename, Rules, Stacked
from zoo.model.decoder import Decoder, Model

READERS = 2  # as measured, on two cores
log = logging.getLogger(__name__)


class Source(Protocol):
    """Where weights come from: which model they are of, what is stored, and each tensor by its name."""

    path: Path

    @property
    def rules(self) -> Rules: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def ends(self) -> list[int]: ...
    def spec(self, ignore_fields: Iterable[str] = ()) -> Decoder: ...
    def entries(self) -> list[Entry]: ...
    def get(self, name: str, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Tensor: ...


@dataclass(frozen=True)
class LazyTensors(Sequence[Tensor]):
    """Tensors of a source, each read when it is looked at and not kept."""

    source: Source
    names: Sequence[str]
    device: str | torch.device
    dtype: torch.dtype

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: Any) -> Any:
        return self.source.get(self.names[i], self.device, self.dtype)


def load(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    offline: bool = False,
    ignore_fields: Iterable[str] = (),
    check_finite: bool = False,
) -> Model:
    """A released model, in eval mode: a hub id, "org/name" or "org/name@revision", a preset's name, a folder in Hugging
    Face layout, or a .gguf file.

    `dtype` "auto" is the source's own: what its config.json says, float32 for a quantised .gguf. On the CPU in its own
    dtype, parameters that are stored as we hold them share the file's pages; packed ones are unpacked one at a time.
    They are normal tensors under `torch.inference_mode()` too.

    `ignore_fields` are fields of the config that the caller vouches for. `check_finite` reads every number first, and
    refuses NaN and infinity. `offline` takes from the download cache only.

    Raises NotAvailable for what is not there, MalformedError for what does not fit, naming all of it at once.
    """
    opened = open_source(source, revision, offline)
    return fill(opened.spec(ignore_fields), opened, device, dtype, check_finite)


def open_source(source: str | Path, revision: str | None = None, offline: bool = False) -> Source:
    """What a name stands for, fetched where it is not here yet. Raises NotAvailable where that cannot be had."""
    path = locate(source, revision, offline)
    if path.is_dir():
        return unpacked(Folder(path))
    if path.is_file() and path.suffix == ".gguf":
        require_package("gguf", "gguf")
        from weights.formats.gguf_file import GGUFFile  # only here, for what it imports is an extra

        return GGUFFile(path)
    raise UsageError(f"{path} is neither a folder with config.json and safetensors files nor a .gguf file")


def fill(
    spec: Decoder,
    source: Source,
    device: str | torch.device,
    dtype: str | torch.dtype,
    check_finite: bool = False,
) -> Model:
    """A model of this spec: everything is seen to fit before the first tensor is read, and read one move at a time.

    The modes around the call do not matter. Under `torch.inference_mode()` the parameters are normal tensors, so the
    model can be trained and compiled afterwards. (The threads that read do not inherit that mode. They could not write
    into tensors that were made in it.) Temporary tensors are on the CPU, whatever the default device is.
    """
    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
        return _fill(spec, source, device, dtype, check_finite)


def _fill(
    spec: Decoder, source: Source, device: str | torch.device, dtype: str | torch.dtype, check_finite: bool
) -> Model:
    stored = text_names(source.path, source.entries())
    model = catalog.allocate(spec, "meta", number_type(dtype, source))
    parameters = dict(model.named_parameters())
    moves = match(spec, parameters, source.rules, stored)
    left = skipped(spec, source.rules, stored)
    check(source.path, moves, parameters, stored, {name for names in left.values() for name in names})
    if spec.tied and HEAD in stored:
        check_copy(source, stored[HEAD].name, stored[EMBED].name)
    if check_finite:
        check_numbers(source, [stored[name].name for move in moves for name in move.theirs])
    model.load_state_dict(read_all(moves, parameters, source, stored, device), assign=True)
    for what, names in left.items():
        log.info("left alone: %d tensor%s, %s", len(names), "s" * (len(names) > 1), what)
    return model


def read_all(
    moves: Sequence[TensorMapping],
    parameters: Mapping[str, Tensor],
    source: Source,
    stored: Mapping[str, Entry],
    device: str | torch.device,
) -> dict[str, Tensor]:
    """Every parameter by name, of the shapes and dtypes of `parameters`.

    First those that are stored as they are held: nothing is copied that need not be. Then room for all the others is
    made at once, and filled: what is read on the way stands behind it, and leaves no gaps between. Stacked experts are
    read several at a time: many small tensors, too small for torch's own threads (a third less time to float32, on two
    cores). Other tensors are not: there several readers were no faster, and each would hold one beside the model.
    """
    alike, others = ([move for move in moves if isinstance(move.rule, Rename) is same] for same in (True, False))
    reading = {
        move: LazyTensors(source, [stored[name].name for name in move.theirs], device, parameters[move.ours[0]].dtype)
        for move in moves
    }
    filled = {move.ours[0]: reading[move][0] for move in alike}
    filled |= {name: _room(parameters[name], device) for move in others for name in move.ours}

    def fill(move: TensorMapping) -> None:
        move.rule.fill([filled[name] for name in move.ours], reading[move], move.layer)

    with ThreadPoolExecutor(READERS) as readers:
        list(readers.map(fill, (move for move in others if isinstance(move.rule, Stacked))))
    for move in others:
        if not isinstance(move.rule, Stacked):
            fill(move)
    return filled


def _room(like: Tensor, device: str | torch.device) -> Tensor:
    """torch.empty_like, which for a meta tensor imports sympy: a third of a second and 20 MB."""
    return torch.empty(like.shape, dtype=like.dtype, device=device)


def number_type(dtype: str | torch.dtype, source: Source) -> torch.dtype:
    """The dtype of a word, "auto" being the source's own."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return source.dtype
    if dtype not in WORDS:
        raise unknown("dtype", dtype, ["auto", *WORDS])
    return WORDS[dtype]


def check_copy(source: Source, head: str, embed: str) -> None:
    """A head that is stored although it is tied must be the embedding, bit by bit."""
    one, other = source.get(head), source.get(embed)
    if one.dtype != other.dtype or not torch.equal(one.view(torch.uint8), other.view(torch.uint8)):
        raise MalformedError(f"{source.path}: the head is tied to the embedding, yet {head} differs from {embed}")


def check_numbers(source: Source, names: Iterable[str]) -> None:
    """Raise one MalformedError for all tensors that hold a NaN or an infinity."""
    ends = ((name, torch.aminmax(source.get(name))) for name in names)  # a NaN is both ends
    wrong = [name for name, (least, most) in ends if not (least.isfinite() and most.isfinite())]
    if wrong:
        raise MalformedError(f"{source.path}: NaN or infinite numbers in {listed(wrong)}")
