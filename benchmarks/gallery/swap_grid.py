"""Swaps of one model's blocks, carried out beforehand: a grid of terms that a page can look up.

Attention and feed-forward do not know of each other, so each has a grid of its own: keys and values by window, experts
by k. The first choice of every axis is the model as it was released. A swap is carried out on one layer of each kind,
and the kinds are counted: a plan of 94 layers would take as many times as long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.gallery.terms import Counted, attention, feed_forward
from zoo.blocks import GQA, MLA, Layer, MoE, NoPE, RoPE
from zoo.errors import ZooError
from zoo.model.decoder import Decoder, swap_layers
from zoo.registry import swap
from zoo.swaps.grammar import apply_swap

Change = Callable[[Decoder, Sequence[bool]], Decoder]
WINDOWS = (512, 1024, 4096)
EVERY = (None, 6, 4, 2)  # of so many layers one sees everything
EXPERTS = (8, 32, 64, 128, 256)
CHOSEN = (1, 2, 4, 8)
NOPE_EVERY = (4, 2, 1)


@dataclass(frozen=True)
class Choice:
    """One setting of an axis: what becomes of a spec, and the Python that does it.

    `change` is told which layers of the spec it is given stand, in the model, at an i with i % every == every - 1.
    `text` is the change as zoo.swaps.grammar has it, where it is one.
    """

    label: str
    change: Change = lambda spec, last: spec
    code: str = ""
    every: int = 1
    text: str = ""

    def drops(self, spec: Decoder) -> list[str]:
        """The features that are lost on the way."""
        few = replace(spec, layers=tuple(dict.fromkeys(spec.layers)))
        try:
            return apply_swap(few, self.text)[1] if self.text else []
        except ZooError:
            return []


RELEASED = Choice("as released")


@dataclass(frozen=True)
class Grid:
    """Terms by the choices of two axes, None where the two do not go together."""

    rows: tuple[Choice, ...]
    columns: tuple[Choice, ...]
    cells: tuple[tuple[Counted | None, ...], ...]


def attention_grid(spec: Decoder) -> Grid:
    """Keys and values by window."""
    return _grid(_keys(spec), tuple(_windows()), spec, attention)


def expert_grid(spec: Decoder) -> Grid:
    """Experts by how many of them a token visits."""
    sparse = any(isinstance(node, MoE) for node in spec.walk())
    experts = (_written(f"{n}", f"MoE(experts={n})" if sparse else f"ffn=MoE(experts={n}, k=2)") for n in EXPERTS)
    dense = (_written("one: dense", "ffn=GLU"),) if sparse else ()
    chosen = (_written(f"{k} of them", f"MoE(k={k})") for k in CHOSEN)
    return _grid((RELEASED, *dense, *experts), (RELEASED, *chosen), spec, feed_forward)


def positions(spec: Decoder) -> list[dict[str, Any]]:
    """Where layers do without position encoding: how many do. It costs nothing, whatever is chosen."""
    found = ((choice, _changed(spec, choice)) for choice in _nopes())
    return [
        {"label": choice.label, "code": choice.code, "without": sum(n for layer, n in layers.items() if _free(layer))}
        for choice, layers in found
        if layers is not None
    ]


def _free(layer: Layer) -> bool:
    """Whether a layer has no position encoding."""
    return any(isinstance(node, NoPE) for node in layer.walk())


def _grid(
    rows: tuple[Choice, ...],
    columns: tuple[Choice, ...],
    spec: Decoder,
    terms: Callable[[Mapping[Layer, int], int], Counted],
) -> Grid:
    def cell(row: Choice, column: Choice) -> Counted | None:
        layers = _changed(spec, row, column)
        return None if layers is None else terms(layers, spec.dim)

    return Grid(rows, columns, tuple(tuple(cell(row, column) for column in columns) for row in rows))


def _changed(spec: Decoder, *choices: Choice) -> dict[Layer, int] | None:
    """How many layers there are of each kind after the choices, or None where they describe no model."""
    every = max(choice.every for choice in choices)
    kinds = Counter((layer, i % every == every - 1) for i, layer in enumerate(spec.layers))
    last = [flag for _, flag in kinds]
    few = replace(spec, layers=tuple(layer for layer, _ in kinds))
    try:
        for choice in choices:
            few = choice.change(few, last)
    except ZooError:
        return None
    found = Counter[Layer]()
    for layer, n in zip(few.layers, kinds.values(), strict=True):
        found[layer] += n
    return found


def _keys(spec: Decoder) -> tuple[Choice, ...]:
    """As many keys and values as there may be, and latents."""
    attn = spec.layers[0].mixer
    if isinstance(attn, GQA):
        counts = [2**i for i in range(attn.heads.bit_length()) if attn.heads % 2**i == 0] + [attn.heads]
        texts = {_heads(n, attn.heads): f"GQA(kv_heads={n})" for n in dict.fromkeys(counts)}
        widths = f"nope_dim={attn.head_dim}, rope_dim=64, v_dim={attn.head_dim}"
        texts["a latent of 512 (MLA)"] = f"attn=MLA(kv_rank=512, q_rank=none, {widths})"
    elif isinstance(attn, MLA):
        texts = {f"a latent of {rank}": f"MLA(kv_rank={rank})" for rank in (256, 1024)}
        texts |= {_heads(n, attn.heads): f"attn=GQA(kv_heads={n}, head_dim={attn.v_dim})" for n in (1, 8, attn.heads)}
    else:
        texts = {}
    return RELEASED, *(_written(label, text) for label, text in texts.items())


def _heads(kv_heads: int, heads: int) -> str:
    kind = {heads: "MHA", 1: "MQA"}.get(kv_heads, "GQA")
    return f"{kv_heads} KV head{'s' if kv_heads > 1 else ''} ({kind})"


def _windows() -> Iterator[Choice]:
    yield RELEASED
    yield _written("none", "GQA(window=none)")
    for window in WINDOWS:
        for every in EVERY:
            which = "all layers" if every is None else f"all but every {_nth(every)} layer"
            yield Choice(f"{window:,}, {which}", _windowed(window, every), _windowed_code(window, every), every or 1)


def _windowed(window: int, every: int | None) -> Change:
    def change(spec: Decoder, last: Sequence[bool]) -> Decoder:
        full = swap(spec, GQA, lambda attn: replace(attn, window=None))
        return swap_layers(full, lambda i: every is None or not last[i], GQA, lambda attn: replace(attn, window=window))

    return change


def _windowed_code(window: int, every: int | None) -> str:
    if every is None:
        return _code(f"GQA(window={window})")
    lines = [_code("GQA(window=none)")]
    lines.append(f"local = lambda attn: replace(attn, window={window})")
    lines.append(f"spec = swap_layers(spec, lambda i: i % {every} != {every - 1}, GQA, local)")
    return "\n".join(lines)


def _nopes() -> Iterator[Choice]:
    yield RELEASED
    yield _written("all layers rotate", "rope=RoPE")
    for every in NOPE_EVERY:
        label = "NoPE everywhere" if every == 1 else f"NoPE in every {_nth(every)} layer"
        code = f"spec = swap_layers(spec, lambda i: i % {every} == {every - 1}, RoPE, NoPE())"
        yield Choice(label, _unrotated, "\n".join([_code("rope=RoPE"), code]), every)


def _unrotated(spec: Decoder, last: Sequence[bool]) -> Decoder:
    return swap_layers(apply_swap(spec, "rope=RoPE")[0], lambda i: last[i], RoPE, NoPE())


def _written(label: str, text: str) -> Choice:
    """A change that zoo.swaps.grammar can say."""
    return Choice(label, lambda spec, last: apply_swap(spec, text)[0], _code(text), text=text)


def _code(text: str) -> str:
    return f'spec, dropped = apply_swap(spec, "{text}")'


def _nth(n: int) -> str:
    return {2: "second", 4: "fourth", 6: "sixth"}[n]
