"""A model's card: what a reader wants to know of it before a tensor exists, as data and as text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from textwrap import wrap
from typing import Any

import torch

from zoo.blocks import Branch, Layer, PostNorm
from zoo.model.decoder import Decoder
from zoo.model.layer_pattern import fold, labels
from zoo.units import dtype_name, format_bytes, format_count

WIDTH, LABEL = 80, 15
KV_CONTEXT, FLOPS_CONTEXT = 32 * 1024, 4096
CONVENTION = f"2 per multiply-add, matrix products only, of one new token that sees {FLOPS_CONTEXT:,}, itself included"
Facts = dict[str, Any]
Rows = dict[str, list[str]]  # label -> paragraphs


def facts(spec: Decoder, dtype: torch.dtype, publisher_active: tuple[int, str] | None = None) -> Facts:
    """The card as data: a model's plan, blocks and costs. Bytes are of one sequence's cache in `dtype`;
    `publisher_active` are the active parameters that the publisher counts, by another rule than ours, and that rule."""
    kinds = dict(zip(dict.fromkeys(spec.layers), labels(spec), strict=True))
    counts = Counter(spec.layers)
    fixed, per_token = spec.kv_growth(dtype)
    return {
        "layers": len(spec.layers),
        "plan": fold([kinds[layer] for layer in spec.layers]),
        "kinds": [{"label": label, "layers": counts[layer]} | _blocks(layer) for layer, label in kinds.items()],
        "dim": spec.dim,
        "vocab": spec.vocab,
        "tied": spec.tied,
        "embed_scale": spec.embed_scale,
        "norm": spec.norm.describe(),
        "context": spec.context,
        "params": spec.params(),
        "active_params": spec.active_params(),
        "publisher_active_params": publisher_active and publisher_active[0],
        "publisher_active_rule": publisher_active and publisher_active[1],
        "embedding_params": spec.embedding_params(),
        "kv_dtype": dtype_name(dtype),
        "kv_fixed_bytes": fixed,
        "kv_bytes_per_token": per_token,
        "kv_bytes_32k": spec.kv_bytes(KV_CONTEXT, dtype=dtype),
        "kv_bytes_context": spec.kv_bytes(spec.context, dtype=dtype) if spec.context else None,
        "flops_per_token_4k": spec.flops(past=FLOPS_CONTEXT - 1, new=1),
        "flops_convention": CONVENTION,
    }


def _blocks(layer: Layer) -> Facts:
    def norms(branch: Branch | PostNorm) -> str:
        kinds = " and ".join(dict.fromkeys(norm.describe() for norm in branch.norms())) or "no norm"
        return f"{branch.placement}, {branch.formula}: {kinds}"

    attn, ffn = norms(layer.attn), norms(layer.ffn)
    both = attn if attn == ffn else f"attn {attn}; ffn {ffn}"
    return {"attn": layer.attn.block.describe(), "ffn": layer.ffn.block.describe(), "norms": both}


def text(report: Facts) -> str:
    """What `python -m zoo.build` found, for a reader: name, swaps, card or both cards, and what the built model did."""
    name = f"{report['model']} at toy widths" if report["tiny"] else report["model"]
    parts = [f"{name}  ({report['hub']})"]
    swaps = [spaced(swap) for swap in report["swaps"]]
    changes = {"swap": swaps, "dropped": [", ".join(report["dropped"]) or "nothing"]} if swaps else {}
    parts += ["", *_single(changes)] if changes else []
    parts += ["", *(_double(report["original"], report["card"]) if swaps else _single(_rows(report["card"])))]
    parts += ["", *_single(_trial(report["built"], report["decoded"]))]
    parts += ["", *wrap(f"FLOPs are {CONVENTION}.", WIDTH)]
    return "\n".join(parts)


def spaced(swap: str) -> str:
    """A swap so that a line can break at its commas."""
    return re.sub(r",\s*", ", ", swap)


def _single(rows: Rows) -> list[str]:
    return [line for label, paragraphs in rows.items() for line in _row(label, [paragraphs], WIDTH - LABEL)]


def _double(original: Facts, swapped: Facts) -> list[str]:
    """Both cards side by side, a star at the rows that differ."""
    column = (WIDTH - LABEL - 2) // 2
    before, after = _rows(original), _rows(swapped)
    for key, label in (("params", "parameters"), ("kv_bytes_32k", "KV cache"), ("flops_per_token_4k", "FLOPs")):
        if original[key] != swapped[key]:
            where = {"KV cache": f" at {KV_CONTEXT:,} tokens", "parameters": " in all"}.get(label, "")
            after[label] = [*after[label], f"{_change(original[key], swapped[key])}{where}"]
    lines = _row("", [["original"], ["swapped"]], column)
    for label, old in before.items():
        same = old == after[label]
        lines += _row(label if same else f"{label} *", [old, ["same"] if same else after[label]], column)
    return lines


def _change(before: int, after: int) -> str:
    """By how much, in percent: -87.5%, and no change that there is as 0.0%."""
    share = after / before - 1
    return f"{share:+.1%}" if abs(share) >= 0.001 else f"{100 * share:+.1g}%"


def _trial(built: Facts, decoded: Facts | None) -> Rows:
    def agree(number: int, formula: int) -> str:
        return "as the formula says" if number == formula else f"and the formula says {formula:,}"

    parameters = f"{built['parameters']:,} parameters, {agree(built['parameters'], built['formula'])}"
    rows = {"built": [f"on {built['device']} in {built['dtype']}, in {built['seconds']:.2g} s: {parameters}"]}
    if decoded is None:
        return rows
    largest, apart, bound = decoded["largest_logit"], decoded["largest_difference"], decoded["bound"]
    chunks = " + ".join(map(str, decoded["chunks"]))
    judged = "not judged: coarse numbers may turn a router's choice"
    if bound is not None:
        judged = f"the bound is {bound:.1e}, {bound / max(1, largest):.0e} of it"
    return rows | {
        "forward": [f"{decoded['tokens']} random tokens, seed {decoded['seed']}: logits up to {largest:.2f}"],
        "decoding": [
            f"over the cache, {chunks} tokens, then {decoded['steps']} one by one",
            f"differs by {apart:.1e} at most, {apart / (largest or 1):.1e} of the largest logit; {judged}",
        ],
        "cache": [f"{decoded['cache_bytes']:,} bytes, {agree(decoded['cache_bytes'], decoded['cache_formula'])}"],
    }


def _rows(card: Facts) -> Rows:
    scale = f", scaled by {card['embed_scale']:g}" if card["embed_scale"] != 1 else ""
    head = "tied to the head" if card["tied"] else "beside a head of the same size"
    active = card["active_params"]
    share = ["all active"] if active == card["params"] else [f"{active:,} ({format_count(active)}) active"]
    if card["publisher_active_params"]:
        share += [f"{card['publisher_active_params']:,} by its publisher's count, {card['publisher_active_rule']}"]
    return {
        "layers": [card["plan"] if len(card["kinds"]) == 1 else f"{card['layers']} = {card['plan']}"],
        "attention": _each(card, "attn"),
        "feed-forward": _each(card, "ffn"),
        "norms": _each(card, "norms"),
        "embedding": [f"{card['vocab']:,} tokens x {card['dim']:,}{scale}, {head}"],
        "parameters": [
            f"{card['params']:,} ({format_count(card['params'])}), {share[0]}",
            *share[1:],
            f"{card['embedding_params'] / card['params']:.1%} in embedding and head",
        ],
        "KV cache": _cache(card),
        "FLOPs": [
            f"{format_count(card['flops_per_token_4k']).replace('B', 'G')} per token "
            f"at {FLOPS_CONTEXT:,} tokens of context"
        ],
    }


def _each(card: Facts, part: str) -> list[str]:
    """What a part is in each kind of layer, said once where it is the same in all."""
    where: dict[str, list[str]] = {}
    for kind in card["kinds"]:
        where.setdefault(kind[part], []).append(f"[{kind['label']}]")
    return list(where) if len(where) == 1 else [f"{' '.join(labels)} {words}" for words, labels in where.items()]


def _cache(card: Facts) -> list[str]:
    fixed, per_token, own = card["kv_fixed_bytes"], card["kv_bytes_per_token"], card["context"]
    growth = f"{per_token:,}{' per token' if fixed else ' bytes per token'} ({format_bytes(per_token)})"
    parts = [f"{fixed:,} bytes ({format_bytes(fixed)})"] * bool(fixed) + [growth] * bool(per_token)
    at = f"{format_bytes(card['kv_bytes_32k'])} at {KV_CONTEXT:,} tokens"
    if own is not None:
        at += (
            ", its own context"
            if own == KV_CONTEXT
            else f", {format_bytes(card['kv_bytes_context'])} at its own {own:,}"
        )
    return [f"{' + '.join(parts)}, in {card['kv_dtype']}", at]


def _row(label: str, cells: Sequence[Sequence[str]], column: int) -> list[str]:
    """A label, and beside it columns of wrapped paragraphs."""
    columns = [
        [line for each in cell for line in wrap(each, column, subsequent_indent="  ", break_on_hyphens=False)]
        for cell in cells
    ]
    rows = zip_longest([label], *columns, fillvalue="")
    return [f"{row[0]:{LABEL}}{'  '.join(line.ljust(column) for line in row[1:])}".rstrip() for row in rows]
