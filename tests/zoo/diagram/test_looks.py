"""The strip of layers: a colour means one thing."""

from __future__ import annotations

import zoo
from tests.presets import over, representatives
from tests.zoo.diagram.drawing import BASE, EXTREME, drawn, parts, small_boxes
from zoo import names, spec, swap
from zoo.blocks import Indexer, MoE
from zoo.diagram.blow_ups import LAYOUTS
from zoo.diagram.looks import FEED_FORWARDS, NONE, reaches

LOOKS = (*reaches(), *FEED_FORWARDS, NONE)


@over(names(), representatives())
def test_the_strip_holds_every_layer_in_order(name: str) -> None:
    """The reach of a layer's attention stands above its feed-forward."""
    model = spec(name)
    strip = parts(drawn(model))[1][1]
    found = [(box, name) for name in LOOKS for box in small_boxes(strip, name)]
    pitch = (LAYOUTS["wide"].panel_end - LAYOUTS["wide"].left) / len(model.layers)
    found.sort(key=lambda bar: (int(((bar[0].left + bar[0].right) / 2 - LAYOUTS["wide"].left) / pitch), bar[0].top))
    shown = [(above, below) for (_, above), (_, below) in zip(found[::2], found[1::2], strict=True)]
    assert all(above.bottom <= below.top for (above, _), (below, _) in zip(found[::2], found[1::2], strict=True))
    assert len(shown) == len(model.layers)
    for (reach, ffn), layer in zip(shown, model.layers, strict=True):
        kept = layer.cache_spec()
        assert (reach == "reach-state") == bool(kept.state and not kept.per_token)
        assert (reach == "reach-entries") == bool(kept.entries)
        assert (reach in ("reach-window", "reach-chunk")) == bool(kept.reach.limit and not kept.entries)
        assert (reach == "none") == (layer.attn is None)
        chosen = any(isinstance(part, Indexer) for part in layer.walk()) and not kept.entries
        assert (reach == "reach-sparse") == chosen
        experts = layer.ffn is not None and any(isinstance(part, MoE) for part in layer.ffn.walk())
        assert ffn == ("none" if layer.ffn is None else "ffn-experts" if experts else "ffn-dense")


def test_a_strip_of_too_many_layers_is_drawn_as_runs() -> None:
    strip = parts(drawn(EXTREME))[1][1]
    assert len(small_boxes(strip, "reach-window")) == len(small_boxes(strip, "ffn-experts")) == 1


def test_positions_of_the_embedding_are_positions() -> None:
    """Layers without rotation have no position encoding only where the model has none."""
    assert not small_boxes(drawn(spec("gpt2")), "reach-nope")
    assert small_boxes(drawn(swap(BASE, zoo.RoPE, zoo.NoPE())), "reach-nope")
