"""torch.compile on other machines: where text is read as ASCII, where its cache on disk is another processor's, and
where there is no C++ compiler."""

import codecs
import locale
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

import torch

from zoo.errors import NotAvailable

F = TypeVar("F", bound=Callable[..., Any])
# Multiply-adds are rounded once, in one instruction: reductions are 1.05 times as fast.
FUSED_MULTIPLY_ADD = {"cpp.enable_floating_point_contract_flag": "fast"}


def load_compiler() -> None:
    """Import what `torch.compile` imports at its first use, under a locale in which it can be imported.

    It reads files of its own, which hold more than ASCII, in the encoding of the locale. That fails under a C locale
    without Python's UTF-8 mode (LC_ALL=C, PYTHONUTF8=0), and so would every first compiled call.
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


def find_compiler() -> None:
    """Raise NotAvailable unless there is the C++ compiler that code for the CPU needs."""
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        raise NotAvailable(
            "compile() needs a C++ compiler, and none is found: install g++, or name one in CXX"
        ) from None


def constant(function: F) -> F:
    """Mark a function that the compiler calls while it traces, and whose result becomes part of the code that it makes.
    torch.compiler.assume_constant_result does this too, and imports the whole compiler."""
    vars(function)["_dynamo_marked_constant"] = True
    return function


def options() -> dict[str, Any]:
    """torch.compile's options for code on this processor.

    The compiler's cache on disk finds code by the graph and the compiler's settings, not by the processor's
    instructions. A processor with AVX2 alone would take code for AVX-512 from a cache that it shares with another one,
    and compute NaN. The width of vectors is a setting: it is set to the one that the compiler would choose.
    """
    from torch._inductor import config
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    isa = pick_vec_isa()
    width = config.cpp.simdlen or (isa.bit_width() if isa else 1)  # 1: no vectors
    return {"cpp.simdlen": width, **FUSED_MULTIPLY_ADD}


def compiled(function: Callable[..., Any], dynamic: bool) -> Callable[..., Any]:
    """`function`, compiled apart from whatever else is compiled of it: for all shapes at once if `dynamic`, else for
    those of its first call, but for marked dimensions."""
    load_compiler()
    settings: dict[str, Any] = {"fullgraph": True, "isolate_recompiles": True, "options": options()}
    return torch.compile(function, dynamic=dynamic, **settings)
