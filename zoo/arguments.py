"""Checks the arguments of public functions: dtypes, token counts and integers. Errors say what was expected."""

from fractions import Fraction
from typing import Any

import torch

from zoo.errors import UsageError, unknown
from zoo.units import parse_tokens

FLOATS = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}  # for computing
STORED = FLOATS | {name: getattr(torch, name) for name in ("float8_e4m3fn", "float8_e5m2", "int8", "uint8", "int4")}
ABBREVIATIONS = {
    **{"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16"},
    **{"fp8": "float8_e4m3fn", "float8": "float8_e4m3fn", "fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"},
}
BITS = {STORED["int4"]: 4}  # torch counts a whole byte


def find_dtype(dtype: str | torch.dtype, computing: bool = False) -> torch.dtype:
    """Returns the torch dtype for a dtype, its name or its usual abbreviation (bf16, fp8), in any case.

    `computing` excludes dtypes that only store values. Raises UsageError for other names and values.
    """
    known = FLOATS if computing else STORED
    if isinstance(dtype, torch.dtype):
        if dtype in known.values():
            return dtype
        name = str(dtype)
    elif isinstance(dtype, str):
        name = dtype
    else:
        raise UsageError(f"a dtype must be a torch.dtype or its name, such as bfloat16, got {dtype!r}")
    name = name.lower().removeprefix("torch.")
    name = ABBREVIATIONS.get(name, name)
    if name in known:
        return known[name]
    if name in STORED:
        raise UsageError(f"{name} only stores values; layers compute in {', '.join(known)}")
    raise unknown("dtype", name, [*known, *ABBREVIATIONS], known)


def element_bytes(dtype: torch.dtype) -> int | Fraction:
    """Returns the bytes of one element; the fraction 1/2 for a 4-bit dtype."""
    return Fraction(BITS[dtype], 8) if dtype in BITS else dtype.itemsize


def token_count(value: Any, name: str, least: int = 0) -> int:
    """Returns the number of tokens in `value`, an integer or a text such as 4096 or 32k (k is 1,024). Raises
    UsageError, with the argument's `name`, for any other value and for numbers below `least`."""
    try:
        value = parse_tokens(value) if isinstance(value, str) else value
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from error
    return count(value, name, least, "an integer or a text such as 32k")


def count(value: Any, name: str, least: int = 1, expected: str = "an integer") -> int:
    """Returns `value` if it is an integer of at least `least`. Otherwise raises UsageError, with its `name`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{name} must be {expected}, at least {least}, got {value!r}")
    return value
