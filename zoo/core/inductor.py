"""torch.compile on unusual machines: with an ASCII locale, with a disk cache shared with another processor, or without
a C++ compiler."""

import codecs
import locale
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, TypeVar, cast

import torch

from zoo.errors import NotAvailable

F = TypeVar("F", bound=Callable[..., Any])
# Fused multiply-adds (one instruction, one rounding) make reductions 1.05 times as fast.
FUSED_MULTIPLY_ADD = {"cpp.enable_floating_point_contract_flag": "fast"}


def load_compiler() -> None:
    """Imports the compiler's modules under a UTF-8 locale, before `torch.compile` imports them at its first use.

    The compiler reads source files with non-ASCII characters in the encoding of the locale. Under a C locale without
    Python's UTF-8 mode (LC_ALL=C, PYTHONUTF8=0) that fails, and every first compiled call would fail too.
    """
    if codecs.lookup(locale.getpreferredencoding(False)).name == "utf-8":
        return
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    except locale.Error:  # no such locale on this system; the present encoding may still work, unless it is ASCII
        return
    try:
        import_module("torch._inductor.lowering")
    finally:
        locale.setlocale(locale.LC_CTYPE, before)


def find_compiler() -> None:
    """Raises NotAvailable if the C++ compiler that CPU code needs is missing."""
    load_compiler()
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        raise NotAvailable(
            "compile() needs a C++ compiler, and none is found: install g++, or name one in CXX"
        ) from None


def constant(function: F) -> F:
    """Marks a function that the compiler evaluates while tracing: its result becomes a constant in compiled code.

    torch.compiler.assume_constant_result does the same, but imports the whole compiler.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function


def options() -> dict[str, Any]:
    """Returns torch.compile's options for this processor.

    The compiler's disk cache is keyed by the graph and the compiler's settings, not by the processor's instructions.
    From a shared cache, a processor with only AVX2 would load AVX-512 code and compute NaN. The vector width is a
    setting, so it is set to the width that the compiler would choose.
    """
    from torch._inductor import config
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    isa = pick_vec_isa()
    width = config.cpp.simdlen or (isa.bit_width() if isa else 1)  # 1: no vectors
    return {"cpp.simdlen": width, **FUSED_MULTIPLY_ADD}


def compiled(function: F, as_built: bool = True, **given: Any) -> F:
    """Returns `function` compiled for every length at once, isolated from other compilations of the same function.
    `given` are options of torch.compile. If the modules that it runs are not `as_built`, torch keeps all its guards and
    leaves the parts uncompiled that it cannot compile."""
    load_compiler()
    defaults: dict[str, Any] = {"dynamic": True, "fullgraph": as_built, "isolate_recompiles": True}
    backend_options: dict[str, Any] = {"guard_filter_fn": _kept_guards} if as_built else {}
    if given.get("backend", "inductor") == "inductor" and "mode" not in given:
        backend_options |= options()
    backend_options |= given.get("options") or {}
    return cast(F, torch.compile(function, **(defaults | given | {"options": backend_options or None})))


def _kept_guards(entries: Sequence[Any]) -> list[bool]:
    """Returns for each guard whether compiled code keeps it. Guards on modules are dropped, because zoo.model.guards
    checks modules. Guards on globals, such as functions, are dropped, because globals do not change."""
    kept = torch.compiler.skip_guard_on_all_nn_modules_unsafe(entries)
    return [is_kept and not entry.is_global for is_kept, entry in zip(kept, entries, strict=True)]
