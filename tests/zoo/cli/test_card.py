"""A model's card, as data and as text."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from tests.presets import over, representatives, split
from zoo import GLU, GQA, Decoder, Layer, MoE, RMSNorm, RoPE, SoftmaxTopK, YarnScaling, names, pre, sandwich, spec
from zoo.cli.card import WIDTH, card, origin, report_text
from zoo.swaps.grammar import apply_swaps

NORM = RMSNorm(1e-6)


def example() -> Decoder:
    local = GQA(8, 2, 16, RoPE(1e4), window=64, qk_norm=NORM)
    whole = GQA(8, 2, 16, RoPE(1e6, YarnScaling(4, 1024, 1.0)), qk_norm=NORM)
    ffn = MoE(8, GLU(96), SoftmaxTopK(2), shared=GLU(32))
    layers = [Layer(pre(NORM, attn), sandwich(NORM, ffn)) for attn in [local, local, whole] * 4]
    return Decoder(1000, 64, tuple(layers), NORM, tied=True, embed_scale=8.0, context=4096)


ABOUT = {
    "compared_with": "another-7b",
    "new": ["QK-norm per head", "no biases"],
    "licence": "MIT",
    "report": "https://arxiv.org/abs/0",
    "left_out": "vision",
}


DECODED = {"seed": 3, "tokens": 50, "chunks": (12, 12, 10), "steps": 16, "largest_logit": 4.0}
DECODED |= {"largest_difference": 2e-15, "compared_in": "float64", "bound": 1e-10, "not_judged": None}
DECODED |= {"cache_bytes": 1024, "cache_formula": 1024}


def report(spec: Decoder, swaps: tuple[str, ...] = (), decoded: dict | None = None, **built) -> dict:
    after, dropped = apply_swaps(spec, swaps)
    made = {"device": "meta", "dtype": "bfloat16", "seconds": 0.25, "parameters": 7, "formula": 7} | built
    return {
        "model": "example",
        "hub": "someone/example",
        "released": "2025-06",
        "note": None,
        "about": None if swaps else ABOUT,
        "tiny": False,
        "budget": None,
        "swaps": swaps,
        "dropped": dropped,
        "original": card(spec, torch.bfloat16),
        "card": card(after, torch.bfloat16),
        "built": made,
        "decoded": decoded,
    }


CARD = """\
example  (someone/example)
released 2025-06

layers         12 = 4 x (2 x [window 64] + 1 x [full])
attention      [window 64] GQA, 8 heads on 2 KV heads of 16, RoPE 10k, window
                 64, QK-norm per head
               [full] GQA, 8 heads on 2 KV heads of 16, RoPE 1M (YaRN x4 from
                 1024), QK-norm per head
feed-forward   MoE 8 x (SwiGLU, width 96) + shared (SwiGLU, width 32), softmax
                 top-2 router
norms          attn pre, x + f(norm(x)): RMSNorm, eps 1e-06; ffn sandwich, x +
                 norm(f(norm(x))): RMSNorm, eps 1e-06
embedding      1,000 tokens x 64, scaled by 8, tied to the head
parameters     2,161,856 (2.16M), 834,752 (835k) active
               3.0% in embedding and head
KV cache       65,536 bytes (64 KiB) + 512 per token (512 B), in bfloat16
               16.1 MiB at 32,768 tokens, 2.06 MiB at max context 4,096
FLOPs          10.3M per token at 4,096 tokens of context

compared       with another-7b; new: QK-norm per head; no biases
report         https://arxiv.org/abs/0
licence        MIT
not built      vision

built          on meta in bfloat16, in 0.25 s: 7 parameters, as the formula says

FLOPs are 2 per multiply-add, matrix products only, of one new token that sees
4,096, itself included.
"""


@over(names())
def test_where_a_size_compared_with(name: str) -> None:
    """The first architecture has no counterpart; an architecture with only other sizes says so."""
    about = origin(name)
    assert (about["compared_with"] is None) == name.startswith("gpt2")
    assert about["new"] == [] or about["compared_with"]
    text = report_text(report(spec(name)) | {"about": about})
    assert ("compared " in text) == (about["compared_with"] is not None)
    assert ("new: only sizes" in text) == (about["compared_with"] is not None and not about["new"])
    assert f"licence        {about['licence']}"[:75] in text


def test_the_card() -> None:
    assert report_text(report(example())) + "\n" == CARD


SWAPPED = """\
swap           attn=MQA
               ffn=GLU(hidden=128)
dropped        shared expert

               original                         swapped
layers         12 = 4 x (2 x [window 64] + 1 x  same
                 [full])
attention *    [window 64] GQA, 8 heads on 2    [window 64] MQA, 8 heads of 16,
                 KV heads of 16, RoPE 10k,        RoPE 10k, window 64, QK-norm
                 window 64, QK-norm per head      per head
               [full] GQA, 8 heads on 2 KV      [full] MQA, 8 heads of 16, RoPE
                 heads of 16, RoPE 1M (YaRN x4    1M (YaRN x4 from 1024),
                 from 1024), QK-norm per head     QK-norm per head
feed-forward * MoE 8 x (SwiGLU, width 96) +     SwiGLU, width 128
"""


def test_a_swapped_card_is_beside_the_original() -> None:
    shown = report_text(report(example(), ("attn=MQA", "ffn=GLU(hidden=128)")))
    assert SWAPPED in shown
    starred = [line.partition(" * ")[0] for line in shown.splitlines() if " * " in line[:15]]
    assert starred == ["attention", "feed-forward", "parameters", "KV cache", "FLOPs"]
    assert "-50.0% at 32,768 tokens" in shown


@pytest.mark.parametrize(
    ("swap", "changed", "same"),
    [("attn=MQA(window=none)", "attention", "feed-forward"), ("ffn=GLU(hidden=50)", "feed-forward", "attention")],
)
def test_a_row_whose_layers_have_other_labels_alone_has_no_star(swap: str, changed: str, same: str) -> None:
    spec = example()
    attns = [layer.mixer for layer in spec.layers[1:3]]
    blocks = [(attn, ffn) for ffn in (GLU(96), MoE(8, GLU(96), SoftmaxTopK(2))) for attn in attns]
    layers = tuple(Layer(pre(NORM, attn), pre(NORM, ffn)) for attn, ffn in blocks)
    shown = report_text(report(replace(spec, layers=layers), (swap,)))
    lines = [line for line in shown.splitlines() if line.startswith((changed, same))]
    starred = {line[:15].strip(): line.endswith("same") for line in lines}
    assert starred == {f"{changed} *": False, same: True}


def test_a_small_change_is_not_rounded_to_zero() -> None:
    """Each windowed layer's cache holds one token less than 64, while other layers hold 32,768."""
    shown = report_text(report(example(), ("SWA(window=63)",)))
    assert "-0.006% at 32,768 tokens" in shown
    assert "0.0%" not in shown


def test_the_check_is_shown_with_its_bound() -> None:
    shown = report_text(report(example(), decoded=DECODED))
    assert "50 random tokens, seed 3: logits up to 4.00" in shown
    assert "12 + 12 + 10 tokens, then 16 one by one" in shown
    assert "differs by 2e-15 of the largest logit at most, in float64; the" in shown
    assert "bound is 1e-10" in shown
    assert "1,024 bytes, as the formula says" in shown


def test_figures_that_disagree_are_both_shown() -> None:
    reason = "float64 needs 1 TB more, and 1 GB is free"
    decoded = DECODED | {"compared_in": "float32", "bound": None, "cache_bytes": 1025, "not_judged": reason}
    shown = " ".join(report_text(report(example(), decoded=decoded, parameters=8)).split())
    assert "8 parameters, and the formula says 7" in shown
    assert "1,025 bytes, and the formula says 1,024" in shown
    assert "in float32; not judged: float64 needs 1 TB more" in shown


def test_a_published_active_count_is_shown_with_its_rule() -> None:
    shown = report(example())
    shown["card"] = card(example(), torch.bfloat16, (123_456, "without the embedding"))
    assert "123,456 published active, without the embedding" in report_text(shown)


def test_what_is_not_certain_is_shown_below_the_name() -> None:
    note = "config from class defaults, not seen published; " * 2 + "context from memory"
    head, *_ = report_text(report(example()) | {"note": note}).split("\n\n")
    name, *lines = head.splitlines()
    assert name == "example  (someone/example)"
    assert " ".join(lines) == f"released 2025-06; {note}"
    assert max(map(len, lines)) <= 80


@over(names(), representatives())
def test_the_data_equals_the_specs(name) -> None:
    whole = spec(name)
    data = card(whole, torch.float32)
    assert sum(kind["layers"] for kind in data["kinds"]) == data["layers"] == len(whole.layers)
    assert sorted(kind["layers"] for kind in data["kinds"]) == sorted(Counter(whole.layers).values())
    assert data["params"] == whole.params()
    assert data["flops_per_token_4k"] == whole.flops(4095, 1)
    for tokens, key in ((32 * 1024, "kv_bytes_32k"), (whole.context, "kv_bytes_context")):
        assert data[key] == whole.kv_bytes(tokens, dtype=torch.float32)
    # fixed bytes + bytes per token is exact once every window is full.
    assert data["kv_fixed_bytes"] + data["kv_bytes_per_token"] * 32 * 1024 == data["kv_bytes_32k"]


@pytest.mark.parametrize("tiny", [False, True])
@pytest.mark.parametrize("name", split(names(), representatives()))
def test_it_fits_eighty_columns(name, tiny) -> None:
    whole = spec(name, tiny)
    for swaps in ((), ("norm=post", "ffn=MoE(experts=4, expert=GLU(hidden=99), router=SoftmaxTopK(k=2), shared=none)")):
        lines = report_text(report(whole, swaps)).splitlines()
        assert max(map(len, lines)) <= WIDTH == 80
        assert not any(line != line.rstrip() for line in lines)
