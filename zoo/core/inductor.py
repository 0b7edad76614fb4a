"""torch's compiler on other machines: where text is read as ASCII, and where its cache is another processor's."""

from __future__ import annotations

import codecs
import locale
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def load() -> None:
    """Import what `torch.compile` imports at its first use, under a locale in which it can be imported.

    It reads files of its own, which hold more than ASCII, in the encoding of the locale. That fails under a C locale
    for which Python's UTF-8 mode is off (LC_ALL=C, PYTHONUTF8=0), and so would every first compiled call.
    """
    if codecs.lookup(locale.getpreferredencoding(False)).name == "utf-8":
        return
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    except locale.Error:  # this system has none: other encodings than ASCII may do
        return
    try:
        import_module("torch._inductor.lowering")
    finally:
        locale.setlocale(locale.LC_CTYPE, before)


def constant(function: F) -> F:
    """Mark a function that the compiler calls while it traces, and whose result becomes part of the code that it makes.
    torch.compiler.assume_constant_result does this too, and imports the whole compiler."""
    vars(function)["_dynamo_marked_constant"] = True
    return function


def options() -> dict[str, Any]:
    """torch.compile's options for code on this processor.

    The compiler's cache on disk finds code by the graph and the compiler's settings, not by the instructions that it
    was made for. A processor with AVX2 alone would take code for AVX-512 from a cache that it shares with another, and
    get NaN. The width of vectors is a setting: it is set to the one that the compiler would choose.
    """
    from torch._inductor import config
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    isa = pick_vec_isa()
    width = config.cpp.simdlen or (isa.bit_width() if isa else 1)  # 1: no vectors
    return {"cpp.simdlen": width, **CONTRACTED}


# A product and the sum it goes into are rounded once, in one instruction: reductions are 1.05 times as fast.
CONTRACTED = {"cpp.enable_floating_point_contract_flag": "fast"}
