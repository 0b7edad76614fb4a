"""The parts that a drawing is stacked from."""

from __future__ import annotations

import pytest

from tests.presets import representatives, split
from tests.zoo.diagram.drawing import (
    MODELS,
    drawn,
)
from zoo import spec
from zoo.blocks import MoE
from zoo.diagram import fragments, svg
from zoo.swaps.grammar import apply_swap

SHOWN = [*representatives(), *(f"tiny {name}" for name in representatives()), "extreme"]


@pytest.mark.parametrize("name", split(MODELS, SHOWN))
def test_a_drawing_is_its_fragments_one_below_the_other(name: str) -> None:
    model = MODELS[name]
    made = fragments(model, "a title")
    assert len({part.key for part in made}) == len(made)
    whole, y = svg(model, "a title"), 0.0
    for part in made:
        moved = part.svg.replace("<g", f'<g transform="translate(0 {y:g})"', 1)
        assert moved in whole
        y += part.height
    assert float(drawn(model).get("height")) == y


def test_a_branch_depends_on_its_own_block() -> None:
    """Swapping the feed-forward leaves the attention's part as it was, and the other way round."""
    experts = apply_swap(spec("llama3.1-8b"), "ffn=MoE(experts=8, k=2)")[0]
    latent = apply_swap(experts, "attn=MLA(kv_rank=512, q_rank=none, nope_dim=128, rope_dim=64, v_dim=128)")[0]
    models = (spec("llama3.1-8b"), experts, latent)
    models = (spec("llama3.1-8b"), experts, latent)
    before, other, third = ({part.key: part for part in fragments(model, "")} for model in models)
    assert before["layer 0.attn"] == other["layer 0.attn"] != third["layer 0.attn"]
    assert before["layer 0.ffn"] != other["layer 0.ffn"] == third["layer 0.ffn"]


@pytest.mark.parametrize("attention", ["GQA(kv_heads=1)", "GQA(bias=true, sinks=false)"])
@pytest.mark.parametrize("name", ["llama3.1-8b", "gpt-oss-20b", "gemma3-27b", "glm4.5-355b", "qwen3-next-80b-a3b"])
def test_two_swaps_are_put_together_from_their_parts(name: str, attention: str) -> None:
    """As a page does it: of each part the one that a swap has changed."""
    released = spec(name)
    experts = "MoE(experts=64)" if any(isinstance(part, MoE) for part in released.walk()) else "ffn=MoE(experts=8, k=2)"
    one, other = (apply_swap(released, swap)[0] for swap in (attention, experts))
    both = apply_swap(one, experts)[0]
    before, first, second, wanted = (
        {part.key: part.svg for part in fragments(model, "")} for model in (released, one, other, both)
    )
    assert list(before) == list(first) == list(second) == list(wanted)
    merged = {key: first[key] if first[key] != before[key] else second[key] for key in before}
    whole = ("title", "layers")
    assert {key: merged[key] for key in wanted if key not in whole} == {
        k: v for k, v in wanted.items() if k not in whole
    }
    assert merged != first
    assert merged != second
