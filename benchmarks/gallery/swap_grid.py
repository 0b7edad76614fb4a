"""Swaps of a model's blocks, computed ahead: grids of cost terms in which the page looks up a choice.

Attention and feed-forward costs are independent, so each has a grid of its own: keys and values by window, experts by
experts per token. The first choice of every axis is the released model. A swap is applied to one layer of each kind and
the kinds are counted: swapping all 94 layers of a model would take as many times as long.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from benchmarks.gallery.cost_terms import Terms, attention_terms, feed_forward_terms
from zoo.blocks import GQA, MLA, Layer, MoE, NoPE, RoPE
from zoo.errors import ZooError
from zoo.model.decoder import Decoder, swap_layers
from zoo.registry import swap
from zoo.swaps.grammar import apply_swap

Change = Callable[[Decoder, Sequence[bool]], Decoder]
WINDOWS = (512, 1024, 4096)
FULL_EVERY = (6, 4, 2)  # one layer of so many has no window
EXPERTS = (8, 32, 64, 128, 256)
EXPERTS_PER_TOKEN = (1, 2, 4, 8)
NOPE_EVERY = (4, 2)  # one layer of so many has no position encoding
ORDINALS = {2: "second", 4: "fourth", 6: "sixth"}


@dataclass(frozen=True)
class Choice:
    """One choice of an axis: how it changes a spec, and the Python code that does the same.

    `change` gets a spec and, for each of its layers, whether the layer is one of those at i % every == every - 1 in the
    whole model. `text` is the change as a swap expression (zoo.swaps.grammar), where there is one.
    """

    label: str
    change: Change = lambda spec, selected: spec
    code: str = ""
    every: int = 1
    text: str = ""

    @property
    def edits(self) -> bool:
        """Whether it changes fields of blocks and leaves the blocks: then it may as well be applied after others."""
        return bool(self.text) and "=" not in self.text.partition("(")[0]

    def dropped_features(self, spec: Decoder) -> list[str]:
        """The features that the swap drops."""
        distinct = replace(spec, layers=tuple(dict.fromkeys(spec.layers)))
        try:
            return apply_swap(distinct, self.text)[1] if self.text else []
        except ZooError:
            return []


RELEASED = Choice("as released")


@dataclass(frozen=True)
class Grid:
    """Terms by the choices of two axes; None where the two cannot be combined. Every row has one that can."""

    rows: tuple[Choice, ...]
    columns: tuple[Choice, ...]
    cells: tuple[tuple[Terms | None, ...], ...]


@lru_cache(maxsize=256)
def attention_grid(spec: Decoder) -> Grid:
    """Attention terms: keys and values by window."""
    return _grid(spec, attention_terms, _kv_choices(spec), _window_choices())


@lru_cache(maxsize=256)
def expert_grid(spec: Decoder) -> Grid:
    """Feed-forward terms: number of experts by experts per token."""
    return _grid(spec, feed_forward_terms, _expert_choices(_is_sparse(spec)), _choices_of_k())


def _is_sparse(spec: Decoder) -> bool:
    return any(isinstance(node, MoE) for node in spec.walk())


def _expert_choices(sparse: bool) -> list[Choice]:
    rows = [_swap_choice("dense", "ffn=GLU")] if sparse else []
    text = "MoE(experts={})" if sparse else "ffn=MoE(experts={}, k=2)"
    return [*rows, *(_swap_choice(f"{n}", text.format(n)) for n in EXPERTS)]


def _choices_of_k() -> Iterator[Choice]:
    return (_swap_choice(f"{k}", f"MoE(k={k})") for k in EXPERTS_PER_TOKEN)


def positions(spec: Decoder) -> list[dict[str, Any]]:
    """For each choice of position encoding, what it is, and a `note` on the layers. None of them changes a cost."""
    return [
        {"label": choice.label, "code": choice.code, "text": choice.text, "dropped": ""}
        | {"note": _positions_note(changed)}
        for choice, changed in _positions(spec)
    ]


def _positions(spec: Decoder) -> list[tuple[Choice, Decoder]]:
    """The choices that change a model, and the models that they make of it: of those that make the same, the first."""
    everywhere = (_swap_choice(f"{name} in all layers", f"rope={name}") for name in ("RoPE", "NoPE"))
    choices = {spec: RELEASED}
    for choice in (*everywhere, *map(_nope_choice, NOPE_EVERY)):
        if made := swapped(spec, choice):
            choices.setdefault(made, choice)
    return [(choice, made) for made, choice in choices.items()]


def _positions_note(spec: Decoder) -> str:
    """How many of the layers that could have a position encoding have none."""
    if spec.positions:
        return f"Positions: {spec.positions.describe()}."
    encodings = [[node for node in layer.walk() if node.role == "rope"] for layer in spec.layers]
    could = sum(map(bool, encodings))
    without = sum(any(isinstance(node, NoPE) for node in nodes) for nodes in encodings)
    layers = f"{could} layers" if could == len(spec.layers) else f"{could} layers with attention"
    if without:
        have = "has" if without == 1 else "have"
        return f"{without} of {layers} {have} no position encoding, which does not change the costs."
    return f"All {layers} have a position encoding."


def _grid(
    spec: Decoder,
    terms: Callable[[Mapping[Layer, int], int], Terms],
    row_choices: Sequence[Choice],
    column_choices: Iterator[Choice],
) -> Grid:
    rows, columns = (RELEASED, *row_choices), (RELEASED, *column_choices)
    changed = {row: both(spec, row, columns) for row in rows}
    cells = {
        row: tuple(terms(Counter(each.layers), spec.dim) if each else None for each in made)
        for row, made in changed.items()
        if any(made)
    }
    return Grid(tuple(cells), columns, tuple(cells.values()))


def both(spec: Decoder, first: Choice, others: Iterable[Choice]) -> list[Decoder | None]:
    """The models after one choice and each of some others, None where that is not a valid one."""
    changed = swapped(spec, first)
    return [changed and swapped(changed, other) for other in others]


def swapped(spec: Decoder, choice: Choice) -> Decoder | None:
    """The model after a choice, or None if that is not a valid one."""
    if choice is RELEASED:
        return spec
    places = [(layer, i % choice.every == choice.every - 1) for i, layer in enumerate(spec.layers)]
    kinds = list(dict.fromkeys(places))  # a layer, and whether it is a selected one
    try:
        distinct = replace(spec, layers=tuple(layer for layer, _ in kinds))
        changed = choice.change(distinct, [selected for _, selected in kinds])
    except ZooError:
        return None
    made = dict(zip(kinds, changed.layers, strict=True))
    return replace(spec, layers=tuple(made[place] for place in places))


def single_choices(spec: Decoder) -> dict[str, list[Choice]]:
    """Axis of the page -> its choices, the first of which is the released model. Those of positions are valid by
    themselves; others may be valid beside a choice of another axis alone."""
    attention, experts = attention_grid(spec), expert_grid(spec)
    return {
        "kv": list(attention.rows),
        "window": list(attention.columns),
        "experts": list(experts.rows),
        "k": list(experts.columns),
        "positions": [choice for choice, _ in _positions(spec)],
    }


def _kv_choices(spec: Decoder) -> list[Choice]:
    """The numbers of KV heads that divide the heads, and latents."""
    mixers = (layer.mixer for layer in spec.layers)
    attn, texts = next((mixer for mixer in mixers if isinstance(mixer, GQA | MLA)), None), dict[str, str]()
    if isinstance(attn, GQA):
        divisors = [2**i for i in range(attn.heads.bit_length()) if attn.heads % 2**i == 0]
        texts = {_heads(n, attn.heads): f"GQA(kv_heads={n})" for n in dict.fromkeys([*divisors, attn.heads])}
        widths = f"nope_dim={attn.head_dim}, rope_dim=64, v_dim={attn.head_dim}"
        texts["latent of 512 (MLA)"] = f"attn=MLA(kv_rank=512, q_rank=none, {widths})"
    elif isinstance(attn, MLA):
        texts = {f"latent of {rank}": f"MLA(kv_rank={rank})" for rank in (256, 1024)}
        texts |= {_heads(n, attn.heads): f"attn=GQA(kv_heads={n}, head_dim={attn.v_dim})" for n in (1, 8, attn.heads)}
    return [_swap_choice(label, text) for label, text in texts.items()]


def _heads(kv_heads: int, heads: int) -> str:
    kind = {heads: "MHA", 1: "MQA"}.get(kv_heads, "GQA")
    return f"{kv_heads} KV head{'s' if kv_heads > 1 else ''} ({kind})"


def _window_choices() -> Iterator[Choice]:
    yield _swap_choice("none", "GQA(window=none)")
    for window in WINDOWS:
        yield _swap_choice(f"{window:,}, all layers", f"GQA(window={window})")
        yield from (_partial_window(window, every) for every in FULL_EVERY)


def _partial_window(window: int, every: int) -> Choice:
    def change(spec: Decoder, selected: Sequence[bool]) -> Decoder:
        full = swap(spec, GQA, lambda attn: replace(attn, window=None))
        return swap_layers(full, lambda i: not selected[i], GQA, lambda attn: replace(attn, window=window))

    code = f"""{_code("GQA(window=none)")}
local = lambda attn: replace(attn, window={window})
spec = swap_layers(spec, lambda i: i % {every} != {every - 1}, GQA, local)"""
    return Choice(f"{window:,}, all but every {ORDINALS[every]} layer", change, code, every)


def _nope_choice(every: int) -> Choice:
    def change(spec: Decoder, selected: Sequence[bool]) -> Decoder:
        return swap_layers(apply_swap(spec, "rope=RoPE")[0], lambda i: selected[i], RoPE, NoPE())

    code = f"spec = swap_layers(spec, lambda i: i % {every} == {every - 1}, RoPE, NoPE())"
    return Choice(f"NoPE in every {ORDINALS[every]} layer", change, "\n".join([_code("rope=RoPE"), code]), every)


def _swap_choice(label: str, text: str) -> Choice:
    """The change that a swap expression makes."""
    return Choice(label, lambda spec, selected: apply_swap(spec, text)[0], _code(text), text=text)


def _code(text: str) -> str:
    return f'spec, dropped = apply_swap(spec, "{text}")'
