"""Importing torch's compiler where text files are read as ASCII."""

from __future__ import annotations

import codecs
import locale
from importlib import import_module


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
