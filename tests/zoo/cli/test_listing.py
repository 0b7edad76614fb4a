"""The registry as a table of blocks against architectures."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.presets import over
from zoo import Spec, names, spec
from zoo.architectures import families, released
from zoo.blocks import CompressedAttention
from zoo.catalog import resolve
from zoo.cli import listing
from zoo.costs import Window
from zoo.swaps.grammar import apply_swap

ROWS = {(row["role"], row["block"]): row["architectures"] for row in listing.block_rows()}


def users(role: str, block: str) -> set[str]:
    return set(ROWS[role, block])


def test_every_kind_of_the_registry_has_a_row() -> None:
    parts = {kind.__name__ for kind in Spec.kinds.values() if kind.role}
    assert parts <= {block for _, block in ROWS}
    assert len(ROWS) == len(listing.block_rows())


@over(families())
def test_marks_are_what_the_specs_hold(family) -> None:
    """A model with learned positions encodes positions, though its attention does not."""
    sizes = [size.spec for size in families()[family].SIZES.values()]
    learned = any(size.positions for size in sizes)
    kinds = {(type(node).role, type(node).__name__) for size in sizes for node in size.walk() if node.role}
    for role, name in kinds - {("attn", "GQA"), ("rope", "NoPE")}:
        assert family in users(role, name)
    assert (family in users("rope", "NoPE")) == (("rope", "NoPE") in kinds and not learned)
    mixers = [layer.mixer for size in sizes for layer in size.layers if layer.mixer]
    assert (family in users("attn", "SWA")) == any(isinstance(mixer.cache_spec().reach, Window) for mixer in mixers)
    has_sinks = (isinstance(mixer, CompressedAttention) or getattr(mixer, "sinks", False) for mixer in mixers)
    assert (family in users("attn", "sinks")) == any(has_sinks)
    routers = [node for size in sizes for node in size.walk() if node.role == "router"]
    assert (family in users("router", "groups of experts")) == any(getattr(each, "groups", 1) > 1 for each in routers)
    heads = [(mixer.heads, mixer.kv_heads) for mixer in mixers if hasattr(mixer, "kv_heads")]
    assert (family in users("attn", "MHA")) == any(kv_heads == all_heads for all_heads, kv_heads in heads)
    assert (family in users("attn", "MQA")) == any(kv_heads == 1 for _, kv_heads in heads)
    assert (family in users("attn", "GQA")) == any(1 < kv_heads < all_heads for all_heads, kv_heads in heads)
    assert (family in users("model", "tied head")) == any(size.tied for size in sizes)


def test_a_new_architecture_is_a_new_column(monkeypatch) -> None:
    swapped = spec("deepseek-v3")
    for text in ("norm=post", "rope=NoPE", "Decoder(tied=true)"):
        swapped, _ = apply_swap(swapped, text)
    added = SimpleNamespace(SIZES={"new-1b": SimpleNamespace(spec=swapped, released="2026-01")})
    monkeypatch.setattr(listing, "families", lambda: {**families(), "a-family-with-a-long-name": added})
    rows = {(row["role"], row["block"]): row["architectures"] for row in listing.block_rows()}
    assert {block for (_, block), users in rows.items() if "a-family-with-a-long-name" in users} >= {
        *("NoPE", "post", "tied head")
    }
    lines = listing.listing_text().splitlines()
    assert any(line.endswith("a-family-with-a-long-name") for line in lines)
    assert max(map(len, lines)) <= 80
    assert any("new-1b" in line for line in lines)


def check_columns(text: str, expected: list[str]) -> None:
    """Every column of every table stands below its architecture's name, and holds its marks."""
    assert max(map(len, text.splitlines())) <= 80
    *tables, _ = text.split("\n\n")
    rows, shown = listing.block_rows(), []
    for table in tables:
        lines = table.splitlines()
        heads = [line.split()[-1] for line in lines if line.split()[-1] in expected]
        assert len(lines) == len(heads) + len(rows) + len({row["role"] for row in rows})
        for i, name in enumerate(heads):
            column = lines[i].index(name)
            marks = [line[column] for line in lines[len(heads) :] if line.startswith("  ")]
            assert marks == ["x" if name in row["architectures"] else "." for row in rows]
        shown += heads
    assert shown == expected


def test_the_text_is_aligned_and_fits_eighty_columns() -> None:
    check_columns(listing.listing_text(), list(families()))


@pytest.mark.parametrize("count", [9, 30, 60])
def test_what_does_not_fit_beside_each_other_is_below(monkeypatch, count: int) -> None:
    last = list(families().values())
    many = {f"architecture-{i}": last[i % len(last)] for i in range(count)}
    monkeypatch.setattr(listing, "families", lambda: many)
    text = listing.listing_text()
    *tables, sizes = text.split("\n\n")
    assert len(tables) > count // 25
    check_columns(text, list(many))
    assert all(f"  {name} " in sizes for name in many)


def test_sizes_are_listed_with_the_release_of_their_architecture() -> None:
    *_, listed = listing.listing_text().split("\n\n")
    lines = [line.split() for line in listed.splitlines() if not line.startswith("   ")][1:]
    assert [(family, month) for family, month, *_ in lines] == [(name, released(of)) for name, of in families().items()]


@over(names())
def test_a_size_uses_what_its_architecture_is_marked_for(name: str) -> None:
    used = listing.used_names(spec(name))
    family = next(family for family, module in families().items() if name in module.SIZES)
    assert used <= {block for (_, block), marked in ROWS.items() if family in marked}
    assert ("tied head" in used) == spec(name).tied


def test_every_size_is_named() -> None:
    shown = listing.listing_text().split()
    assert all(name in shown for name in names())
    assert {name for sizes in listing.published_sizes().values() for name in sizes} == set(names())
    assert all(resolve(family) in sizes for family, sizes in listing.published_sizes().items())
