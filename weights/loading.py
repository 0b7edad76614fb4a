"""From a source of weights to a model: all parameters filled and all tensors accounted for, or one error."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from weights.extras import need
from weights.files import WORDS, Folder
from weights.matching import EMBED, HEAD, Entry, check, listed, match, skipped, text_names
from weights.sources import locate
from zoo import catalog
from zoo.decoder import Decoder, Model
from zoo.errors import MalformedError, UsageError, unknown
from zoo.layout import Rules

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
    def get(self, name: str) -> Tensor: ...


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

    `dtype` "auto" is the source's own; float32 where that is quantised. On the CPU in its own dtype, parameters that
    are stored as we hold them share the file's pages. `ignore_fields` are fields of the config that the caller vouches
    for. `check_finite` reads every number first, and refuses NaN and infinity. `offline` takes from the download cache
    only.

    Raises NotAvailable for what is not there, MalformedError for what does not fit, naming all of it at once.
    """
    opened = open_source(source, revision, offline)
    return fill(opened.spec(ignore_fields), opened, device, dtype, check_finite)


def load_into(
    spec: Decoder, source: str | Path, *, device: str | torch.device = "cpu", dtype: str | torch.dtype = "auto"
) -> Model:
    """A model of the given spec with the weights of a source, whose config says only which family they are of."""
    return fill(spec, open_source(source), device, dtype)


def open_source(source: str | Path, revision: str | None = None, offline: bool = False) -> Source:
    """What a name stands for, fetched where it is not here yet. Raises NotAvailable where that cannot be had."""
    path = locate(source, revision, offline)
    if path.is_dir():
        return Folder(path)
    if path.is_file() and path.suffix == ".gguf":
        need("gguf", "gguf")
        from weights.gguf_file import GGUFFile  # only here, for what it imports is an extra

        return GGUFFile(path)
    raise UsageError(f"{path} is neither a folder with config.json and safetensors files nor a .gguf file")


def fill(
    spec: Decoder,
    source: Source,
    device: str | torch.device,
    dtype: str | torch.dtype,
    check_finite: bool = False,
) -> Model:
    """A model of this spec: everything is seen to fit before the first tensor is read, and read one move at a time."""
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
    filled: dict[str, Tensor] = {}
    for move in moves:
        for name, tensor in move.read(source.get(stored[their].name) for their in move.theirs).items():
            filled[name] = tensor.to(device, parameters[name].dtype).contiguous()
    model.load_state_dict(filled, assign=True)
    for what, names in left.items():
        log.info("left alone: %d tensor%s, %s", len(names), "s" * (len(names) > 1), what)
    return model


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
