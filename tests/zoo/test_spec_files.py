"""A spec written as spec.json is read back equal, and everything else is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given

import zoo
from tests.test_properties import decoders, thoroughly
from zoo.catalog import sizes
from zoo.errors import MalformedError, NotAvailable
from zoo.spec_files import spec_from, spec_text


def read(text: str) -> zoo.Decoder:
    return spec_from(json.loads(text), "spec.json")


@pytest.mark.parametrize("tiny", [False, True])
def test_every_size_is_read_back(tiny: bool) -> None:
    for name in sizes():
        spec = zoo.spec(name, tiny=tiny)
        assert read(spec_text(spec)) == spec, name


@thoroughly
@given(decoders())
def test_any_composition_is_read_back(spec: zoo.Decoder) -> None:
    assert read(spec_text(spec)) == spec
    assert json.loads(spec_text(spec))["imports"] == []


def test_a_kind_of_ones_own_names_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo.Spec, "kinds", dict(zoo.Spec.kinds))

    @dataclass(frozen=True)
    class Doubled(zoo.SwiGLU):
        """An activation that is not part of the zoo."""

    spec = zoo.swap(zoo.spec("qwen3", tiny=True), zoo.SwiGLU, Doubled())
    text = spec_text(spec)
    assert json.loads(text)["imports"] == [__name__]
    assert read(text) == spec
    del zoo.Spec.kinds["Doubled"]
    with pytest.raises(NotAvailable, match=rf"no block 'Doubled' is defined; import {__name__} first, or --import it"):
        read(text)


def edited(edit: Callable[[Any], object]) -> Any:
    content = json.loads(spec_text(zoo.spec("qwen3", tiny=True)))
    edit(content)
    return content


MISFITS: dict[str, Callable[[Any], object]] = {
    r'must be an object with "format"': lambda c: c.update(format="other"),
    r"has version 2; this zoo reads versions up to 1: update the zoo": lambda c: c.update(version=2),
    r"version must be a positive integer": lambda c: c.update(version="1"),
    r"imports must be a list of module names": lambda c: c.update(imports=[1]),
    r"spec must be a Decoder": lambda c: c.update(spec=c["spec"]["norm"]),
    r'spec: must have a "kind"': lambda c: c["spec"].pop("kind"),
    r"spec\.norm: unknown kind 'RMSnorm'; did you mean RMSNorm": lambda c: c["spec"]["norm"].update(kind="RMSnorm"),
    r"spec\.norm: unknown kind '_RMSNorm'": lambda c: c["spec"]["norm"].update(kind="_RMSNorm"),
    r"spec: Decoder has no field 'width'": lambda c: c["spec"].update(width=1),
    r"spec: Decoder needs vocab, dim": lambda c: (c["spec"].pop("vocab"), c["spec"].pop("dim")),
    r"spec: Decoder: dim must be a positive integer": lambda c: c["spec"].update(dim=10**400),
    r"spec: Decoder: dim must be a positive integer, not '64'": lambda c: c["spec"].update(dim="64"),
    r"spec\.layers\[1\]\.attn\.block: GQA: ": lambda c: c["spec"]["layers"][1]["attn"]["block"].update(kv_heads=3),
    r"spec: Decoder: layers must be a tuple of Layer": lambda c: c["spec"].update(layers=[c["spec"]["norm"]]),
    r"is nested too deeply": lambda c: c["spec"].update(norm=nested(3000)),
}


def nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("message", MISFITS)
def test_a_misfit_is_refused_by_name(message: str) -> None:
    with pytest.raises(MalformedError, match=rf"^spec\.json: .*{message}|^spec\.json: {message}"):
        spec_from(edited(MISFITS[message]), "spec.json")


def test_an_older_file_without_an_optional_field_is_read() -> None:
    spec = spec_from(edited(lambda content: content["spec"].pop("tied")), "spec.json")
    assert spec == spec_from(edited(lambda content: content["spec"].update(tied=False)), "spec.json")
