"""The registry as a table of blocks against architectures."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from zoo import Spec, names, spec
from zoo.architectures import families
from zoo.catalog import resolve
from zoo.cli import listing
from zoo.swaps.grammar import apply_swap

ROWS = {(row["role"], row["block"]): row["architectures"] for row in listing.block_rows()}


def users(role: str, block: str) -> set[str]:
    return set(ROWS[role, block])


def test_every_kind_of_the_registry_has_a_row() -> None:
    parts = {kind.__name__ for kind in Spec.kinds.values() if kind.role}
    assert parts <= {block for _, block in ROWS}
    assert len(ROWS) == len(listing.block_rows())


@pytest.mark.parametrize("family", families())
def test_marks_are_what_the_specs_hold(family) -> None:
    sizes = [size.spec for size in families()[family].SIZES.values()]
    kinds = {(type(node).role, type(node).__name__) for size in sizes for node in size.walk() if node.role}
    for role, name in kinds - {("attn", "GQA")}:
        assert family in users(role, name)
    mixers = [layer.mixer for size in sizes for layer in size.layers]
    assert (family in users("attn", "SWA")) == any(mixer.cache_spec().reach.limit for mixer in mixers)
    assert (family in users("attn", "sinks")) == any(getattr(mixer, "sinks", False) for mixer in mixers)
    heads = [(mixer.heads, mixer.kv_heads) for mixer in mixers if hasattr(mixer, "kv_heads")]
    assert (family in users("attn", "MHA")) == any(kv_heads == all_heads for all_heads, kv_heads in heads)
    assert (family in users("attn", "MQA")) == any(kv_heads == 1 for _, kv_heads in heads)
    assert (family in users("attn", "GQA")) == any(1 < kv_heads < all_heads for all_heads, kv_heads in heads)
    assert (family in users("model", "tied head")) == any(size.tied for size in sizes)


def test_a_new_architecture_is_a_new_column(monkeypatch) -> None:
    first = names()[0]
    swapped = spec(first)
    for text in ("norm=post", "rope=NoPE", "Decoder(tied=true)"):
        swapped, _ = apply_swap(swapped, text)
    added = SimpleNamespace(SIZES={"new-1b": SimpleNamespace(spec=swapped)})
    monkeypatch.setattr(listing, "families", lambda: {**families(), "a-family-with-a-long-name": added})
    rows = {(row["role"], row["block"]): row["architectures"] for row in listing.block_rows()}
    assert {block for (_, block), users in rows.items() if "a-family-with-a-long-name" in users} >= {
        *("NoPE", "post", "tied head")
    }
    lines = listing.listing_text().splitlines()
    assert any(line.endswith("a-family-with-a-long-name") for line in lines)
    assert max(map(len, lines)) <= 80
    assert any("new-1b" in line for line in lines)


def test_the_text_is_aligned_and_fits_eighty_columns() -> None:
    lines = listing.listing_text().splitlines()
    assert max(map(len, lines)) <= 80
    for i, family in enumerate(families()):
        column = lines[i].index(family)
        table = lines[len(families()) : lines.index("")]
        assert {line[column] for line in table} <= set("|x.")
        assert sum(line[column] == "x" for line in table) == sum(family in users for users in ROWS.values())


def test_every_size_is_named() -> None:
    shown = listing.listing_text().split()
    assert all(name in shown for name in names())
    assert {name for sizes in listing.published_sizes().values() for name in sizes} == set(names())
    assert all(resolve(family) in sizes for family, sizes in listing.published_sizes().items())
