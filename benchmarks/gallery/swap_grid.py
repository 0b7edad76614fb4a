"""Costs of swapped blocks, computed ahead: grids of cost terms in which the page looks up the reader's choices.

Attention and feed-forward costs are independent, so there are two grids: keys and values by window, and experts by
experts per token. The first choice of every axis is the released model.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from benchmarks.gallery.cost_terms import Terms, attention_terms, feed_forward_terms
from zoo.blocks import GQA, MLA, Layer
from zoo.errors import ZooError
from zoo.model.decoder import Decoder
from zoo.swaps.grammar import apply_swaps

WINDOWS = (512, 1024, 4096)
FULL_EVERY = (6, 4, 2)  # one layer in this many has no window
EXPERTS = (8, 32, 64, 128, 256)
EXPERTS_PER_TOKEN = (1, 2, 4, 8)
NOPE_EVERY = (4, 2)  # one layer in this many has no position encoding
ORDINALS = {2: "second", 4: "fourth", 6: "sixth"}


@dataclass(frozen=True)
class Choice:
    """One choice of an axis: its label, and its swaps in the order in which they apply (zoo.swaps.grammar)."""

    label: str
    swaps: tuple[str, ...] = ()

    @property
    def edits(self) -> bool:
        """Whether the choice only changes fields of blocks. Such a choice can be applied after any other."""
        return all("=" not in text.partition("(")[0] for text in self.swaps)

    def shown(self, spec: Decoder) -> dict[str, Any]:
        """Returns the page's entry for the choice. `dropped` names the features that the swap removes."""
        try:
            dropped = apply_swaps(spec, self.swaps)[1]
        except ZooError:
            dropped = []
        return {"label": self.label, "swaps": self.swaps, "dropped": ", ".join(dropped)}


RELEASED = Choice("as released")


@dataclass(frozen=True)
class Grid:
    """Terms for each combination of two axes' choices; None if it is invalid. Every row has a valid combination."""

    rows: tuple[Choice, ...]
    columns: tuple[Choice, ...]
    cells: tuple[tuple[Terms | None, ...], ...]


@lru_cache(maxsize=256)
def attention_grid(spec: Decoder) -> Grid:
    """Returns the grid of attention terms: keys and values by window."""
    return _grid(spec, attention_terms, _kv_choices(spec), _window_choices())


@lru_cache(maxsize=256)
def expert_grid(spec: Decoder) -> Grid:
    """Returns the grid of feed-forward terms: number of experts by experts per token."""
    sparse = any(layer.mixture for layer in spec.layers)
    text = "MoE(experts={})" if sparse else "ffn=MoE(experts={}, k=2)"
    dense = [Choice("dense", ("ffn=GLU",))] if sparse else []
    experts = [*dense, *(Choice(f"{n}", (text.format(n),)) for n in EXPERTS)]
    return _grid(spec, feed_forward_terms, experts, (Choice(f"{k}", (f"MoE(k={k})",)) for k in EXPERTS_PER_TOKEN))


def positions(spec: Decoder) -> list[dict[str, Any]]:
    """Returns each choice of position encoding, with a `note` on the layers. None of the choices changes a cost."""
    return [choice.shown(spec) | {"note": _positions_note(changed)} for choice, changed in _positions(spec)]


def _positions(spec: Decoder) -> list[tuple[Choice, Decoder]]:
    """Returns the released model and the choices that change it, each with the resulting model.

    If several choices give the same model, only the first of them is returned.
    """
    everywhere = (Choice(f"{name} in all layers", (f"rope={name}",)) for name in ("RoPE", "NoPE"))
    choices = {spec: RELEASED}
    some = (
        Choice(f"NoPE in every {ORDINALS[every]} layer", ("rope=RoPE", f"rope=NoPE every {every}"))
        for every in NOPE_EVERY
    )
    for choice in (*everywhere, *some):
        if made := swapped(spec, choice):
            choices.setdefault(made, choice)
    return [(choice, made) for made, choice in choices.items()]


def _positions_note(spec: Decoder) -> str:
    """Returns a sentence on a model's position encodings, with the number of layers without an encoding."""
    if spec.positions:
        return f"Positions: {spec.positions.describe()}."
    encodings = [layer.position_encoding for layer in spec.layers if layer.position_encoding]
    could = len(encodings)
    without = sum(not encoding.encodes for encoding in encodings)
    layers = f"{could} layers" if could == len(spec.layers) else f"{could} layers with attention"
    if not could:
        return "No layer encodes positions."
    if without == could:
        return f"None of the {layers} has a position encoding."
    if without:
        return f"{without} of {layers} {'has' if without == 1 else 'have'} no position encoding."
    found = dict.fromkeys(encoding.describe() for encoding in encodings)
    return f"All {layers} have a position encoding: {' or '.join(found)}."


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
    """Returns the models after `first` and each of `others`; None for an invalid model."""
    changed = swapped(spec, first)
    return [changed and swapped(changed, other) for other in others]


def swapped(spec: Decoder, choice: Choice) -> Decoder | None:
    """Returns the model after a choice, or None for an invalid one."""
    try:
        return apply_swaps(spec, choice.swaps)[0]
    except ZooError:
        return None


def single_choices(spec: Decoder) -> dict[str, list[Choice]]:
    """Returns {axis of the page: its choices}. The first choice of each axis is the released model.

    Every choice of positions is valid alone. Other choices may be valid only together with a choice of another axis.
    """
    attention, experts = attention_grid(spec), expert_grid(spec)
    return {
        "kv": list(attention.rows),
        "window": list(attention.columns),
        "experts": list(experts.rows),
        "k": list(experts.columns),
        "positions": [choice for choice, _ in _positions(spec)],
    }


def _kv_choices(spec: Decoder) -> list[Choice]:
    """Returns the choices of keys and values: numbers of KV heads, and ranks of latents.

    A choice that replaces attention is left out if some layers have a state instead: it would replace the states too.
    """
    mixers = [layer.mixer for layer in spec.layers if layer.mixer]
    attn, texts = next((mixer for mixer in mixers if isinstance(mixer, GQA | MLA)), None), dict[str, str]()
    alike = all(isinstance(mixer, type(attn)) for mixer in mixers)
    if isinstance(attn, GQA):
        divisors = [2**i for i in range(attn.heads.bit_length()) if attn.heads % 2**i == 0]
        texts = {_heads(n, attn.heads): f"GQA(kv_heads={n})" for n in dict.fromkeys([*divisors, attn.heads])}
        widths = f"nope_dim={attn.head_dim}, rope_dim=64, v_dim={attn.head_dim}"
        if alike:
            texts["latent of 512 (MLA)"] = f"attn=MLA(kv_rank=512, q_rank=none, {widths})"
    elif isinstance(attn, MLA):
        texts = {f"latent of {rank}": f"MLA(kv_rank={rank})" for rank in (256, 1024)}
        if alike:
            replaced = f"attn=GQA(kv_heads={{}}, head_dim={attn.v_dim})"
            texts |= {_heads(n, attn.heads): replaced.format(n) for n in (1, 8, attn.heads)}
    return [Choice(label, (text,)) for label, text in texts.items()]


def _heads(kv_heads: int, heads: int) -> str:
    kind = {heads: "MHA", 1: "MQA"}.get(kv_heads, "GQA")
    return f"{kv_heads} KV head{'s' if kv_heads > 1 else ''} ({kind})"


def _window_choices() -> Iterator[Choice]:
    yield Choice("none", ("GQA(window=none)",))
    for window in WINDOWS:
        local = f"GQA(window={window})"
        yield Choice(f"{window:,}, all layers", (local,))
        for every in FULL_EVERY:
            label = f"{window:,}, all but every {ORDINALS[every]} layer"
            yield Choice(label, ("GQA(window=none)", f"{local} except every {every}"))
