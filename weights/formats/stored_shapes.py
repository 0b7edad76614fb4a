"""The names and shapes of stored tensors, from the headers of safetensors files: what an estimate needs of a model.

Codes of quantised tensors are counted as the values that they stand for: a byte with scales beside it holds two 4-bit
values if their dtype is that of a 4-bit format, and a 32-bit integer as many as the config's number of bits allows.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from weights.matching import TABLE_DTYPES, StoredTensor
from zoo.errors import MalformedError
from zoo.hf.stored_shapes import StoredShapes

BYTES = {torch.int8, torch.uint8}
SCALE_DTYPES = {torch.float8_e8m0fnu, torch.float8_e4m3fn, torch.uint8}  # of 4-bit values; 8-bit values have wider ones
SCALES = ("_scale_inv", "_scale", "_scales", ".scale")  # after the name of the codes, less one of the ends below
ENDS = ("_blocks", ".weight", "_packed", "")
INTEGERS = ("qweight", "weight_packed")  # codes of several values in 32 bits (GPTQ, AWQ, compressed-tensors)
BITS = ("bits", "w_bit", "num_bits")
MAX_TENSORS = 1_000_000  # in all files: ten times the largest release


def stored_shapes(where: object, tensors: Iterable[StoredTensor], config: Mapping[str, Any]) -> StoredShapes:
    """Returns the shapes of stored tensors as an estimate takes them. `config` is the config.json, which may name the
    number of bits of packed codes. Raises MalformedError, naming `where`, for more than a million tensors."""
    held = {tensor.name: tensor for tensor in tensors}
    if len(held) > MAX_TENSORS:
        raise MalformedError(f"{where} holds {len(held)} tensors, above the limit of {MAX_TENSORS}")
    shapes: dict[str, tuple[int, ...]] = {}
    packed: dict[str, int] = {}
    tables: set[str] = set()
    for name, tensor in held.items():
        shapes[name] = tensor.shape
        if tensor.dtype in BYTES and _is_four_bit(name, held):
            packed[name] = 2
        elif tensor.dtype is torch.int32 and name.endswith(INTEGERS):
            packed[name] = 32 // _bits(config)
        elif tensor.dtype in TABLE_DTYPES:
            tables.add(name)
        if packed.get(name) == 2 and name.endswith(".weight"):  # two values of a row in each byte
            shapes[name] = (*tensor.shape[:-1], 2 * tensor.shape[-1])
            del packed[name]
    return StoredShapes(shapes, packed, frozenset(tables))


def _is_four_bit(name: str, held: Mapping[str, StoredTensor]) -> bool:
    """Whether scales with the dtype of 4-bit formats (MXFP4, NVFP4) belong to a tensor of bytes."""
    stems = [name.removesuffix(end) for end in ENDS if name.endswith(end)]
    scales = [held[stem + scale] for stem in stems for scale in SCALES if stem + scale in held]
    return any(scale.dtype in SCALE_DTYPES for scale in scales)


def _bits(config: Mapping[str, Any]) -> int:
    """Returns the number of bits of a packed value in the config; 4 if it does not say."""
    found = config.get("quantization_config")
    given = [found.get(name) for name in BITS] if isinstance(found, dict) else []
    return next((bits for bits in given if type(bits) is int and bits in (2, 4, 8)), 4)
