"""From a source of weights to a model: all parameters filled and all tensors accounted for, or one error."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from weights.files import Folder
from weights.matching import EMBED, HEAD, check, match, skipped, text_names
from zoo import catalog
from zoo.decoder import Decoder, Model
from zoo.errors import MalformedError, NotAvailable, unknown
from zoo.layout import COMMON, Rules

FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
log = logging.getLogger(__name__)


def load(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    ignore_fields: Iterable[str] = (),
) -> Model:
    """A released model, in eval mode, from a folder in Hugging Face layout.

    `dtype` "auto" is the checkpoint's own. On the CPU in that dtype, parameters that are stored as we hold them share
    the file's pages. `ignore_fields`: fields of config.json that the caller vouches for. Raises NotAvailable for what
    is not there and MalformedError for what does not fit, naming all of it.
    """
    path = Path(source)
    if path.is_dir():
        folder = Folder(path)
        return fill(catalog.from_hf(folder.config, ignore_fields), folder, device, dtype)
    raise NotAvailable(f"{source} is no folder")


def load_into(
    spec: Decoder, source: str | Path, *, device: str | torch.device = "cpu", dtype: str | torch.dtype = "auto"
) -> Model:
    """A model of the given spec with a folder's weights, whatever else its config.json says than which family it is."""
    return fill(spec, Folder(Path(source)), device, dtype)


def fill(spec: Decoder, folder: Folder, device: str | torch.device, dtype: str | torch.dtype) -> Model:
    """A model of this spec: everything is seen to fit before the first tensor is read, and read one move at a time."""
    refuse_packed(folder)
    rules: Rules = (*getattr(catalog.family_of(folder.config), "WEIGHTS", ()), *COMMON)
    stored = text_names(folder.stored())
    model = catalog.allocate(spec, "meta", number_type(dtype, folder))
    parameters = dict(model.named_parameters())
    moves = match(spec, parameters, rules, stored)
    left = skipped(spec, rules, stored)
    check(moves, parameters, stored, {name for names in left.values() for name in names})
    if spec.tied and HEAD in stored:
        check_copy(folder, stored[HEAD].name, stored[EMBED].name)
    filled: dict[str, Tensor] = {}
    for move in moves:
        for name, tensor in move.read(folder.get(stored[their].name) for their in move.theirs).items():
            filled[name] = tensor.to(device, parameters[name].dtype).contiguous()
    model.load_state_dict(filled, assign=True)
    for what, names in left.items():
        log.info("left alone: %d tensors of %s", len(names), what)
    return model


def refuse_packed(folder: Folder) -> None:
    """Raise MalformedError for weights that are stored in fewer bits than a number has."""
    for config in (folder.config, folder.config.get("text_config") or {}):
        packed = config.get("quantization_config")
        if packed is not None:
            method = packed.get("quant_method", "unknown") if isinstance(packed, dict) else packed
            raise MalformedError(
                f"{folder.path}: the weights are packed (quantization_config: {method}), and packed weights are not "
                "read; use a copy in bfloat16, float16 or float32"
            )


def number_type(dtype: str | torch.dtype, folder: Folder) -> torch.dtype:
    """The dtype asked for; for "auto" the one config.json names, else that of the first tensor."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype != "auto":
        if dtype not in FLOATS:
            raise unknown("dtype", dtype, ["auto", *FLOATS])
        return FLOATS[dtype]
    for config in (folder.config, folder.config.get("text_config") or {}):
        named = config.get("dtype", config.get("torch_dtype"))
        if named is not None:
            if named not in FLOATS:
                raise MalformedError(f"{folder.path / 'config.json'}: dtype {named!r} is none of {', '.join(FLOATS)}")
            return FLOATS[named]
    return next((tensor.dtype for tensor in folder.stored() if tensor.dtype), torch.float32)


def check_copy(folder: Folder, head: str, embed: str) -> None:
    """A head that is stored although it is tied must be the embedding, bit by bit."""
    one, other = folder.get(head), folder.get(embed)
    if one.dtype != other.dtype or not torch.equal(one.view(torch.uint8), other.view(torch.uint8)):
        raise MalformedError(f"{folder.path}: the head is tied to the embedding, yet {head} differs from {embed}")
