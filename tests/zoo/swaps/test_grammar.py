"""The grammar of swaps: what they change, carry over and drop, and the errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import zoo
from tests.presets import over, representatives
from zoo import (
    GLU,
    GQA,
    MLA,
    Decoder,
    GeGLU,
    GroupedSigmoidTopK,
    Layer,
    LinearScaling,
    MoE,
    NoPE,
    RMSNorm,
    RoPE,
    SoftmaxTopK,
    Spec,
    SwiGLU,
    names,
    olmo,
    post,
    pre,
    sandwich,
    spec,
    swap,
    swap_layers,
)
from zoo.blocks.layer import PLACEMENTS
from zoo.errors import SpecError, UsageError
from zoo.model.module import Model
from zoo.swaps.grammar import SUMMARY, apply_swap
from zoo.swaps.scaled import at_depth

NORM, QK_NORM = RMSNorm(1e-6), RMSNorm(1e-5)
ROPE = RoPE(1e4, LinearScaling(8))
ATTN = GQA(8, 2, 16, ROPE, window=4, qk_norm=QK_NORM, scale=0.5, bias=True, sinks=True)
GLOBAL = replace(ATTN, window=None)
FFN = GLU(96, GeGLU(), bias=True)
MOE = MoE(8, GLU(32), SoftmaxTopK(2), shared=GLU(64))
LATENT = "MLA(q_rank=24, kv_rank=16, nope_dim=8, rope_dim=4, v_dim=12)"


def model(*layers: tuple[Spec, Spec], place=pre) -> Decoder:
    return Decoder(64, 32, tuple(Layer(place(NORM, attn), place(NORM, ffn)) for attn, ffn in layers), NORM)


def swapped(before: Decoder, text: str) -> Decoder:
    return apply_swap(before, text)[0]


MIXERS = "CompressedAttention, GQA, GatedDeltaNet, KDA, KVSource, MLA, Mamba2, SharedKV, ShortConv, SparseMLA"
PLAIN = model((GQA(8, 2, 16, RoPE(1e4)), GLU(96)), (GQA(8, 2, 16, RoPE(1e4)), GLU(96)))
RICH = model((ATTN, FFN), (GLOBAL, FFN), place=sandwich)
ROUTED = model((GLOBAL, FFN), (GLOBAL, MOE))


@pytest.mark.parametrize(
    ("before", "text", "kind", "change"),
    [
        (PLAIN, "GQA(window=1_024)", GQA, lambda a: replace(a, window=1024)),
        # Numbers with a unit, and arithmetic with fields of the block and of the model.
        (PLAIN, "GQA(window=4k)", GQA, lambda a: replace(a, window=4096)),
        (PLAIN, "GQA(window=1.5K)", GQA, lambda a: replace(a, window=1536)),
        (PLAIN, "GQA(window=1M)", GQA, lambda a: replace(a, window=1 << 20)),
        (PLAIN, "GQA(window=2k/dim)", GQA, lambda a: replace(a, window=64)),
        (PLAIN, "GQA(head_dim=dim/heads)", GQA, lambda a: replace(a, head_dim=4)),
        (PLAIN, "GQA(head_dim=2 * (dim - heads) / 12)", GQA, lambda a: replace(a, head_dim=4)),
        (PLAIN, "GQA(kv_heads=heads)", GQA, lambda a: replace(a, kv_heads=8)),
        (PLAIN, "GQA(heads=heads*2, kv_heads=heads)", GQA, lambda a: replace(a, heads=16, kv_heads=8)),
        (PLAIN, "GQA(window=vocab/layers)", GQA, lambda a: replace(a, window=32)),
        (PLAIN, "GQA(window=0.1 * 10 + hidden)", GQA, lambda a: replace(a, window=97)),  # 0.1 is a tenth
        (PLAIN, "GLU(hidden=-(-dim))", GLU, lambda f: replace(f, hidden=32)),
        (PLAIN, "GQA(scale=1/head_dim)", GQA, lambda a: replace(a, scale=1 / 16)),
        (PLAIN, "RoPE(theta=theta/3)", RoPE, lambda r: replace(r, theta=1e4 / 3)),
        (ROUTED, "MoE(expert=GLU(hidden=hidden/2))", MoE, lambda m: replace(m, expert=GLU(16))),
        (ROUTED, "MoE(hidden=hidden/2, k=experts/2)", MoE, lambda m: replace(m, expert=GLU(16), router=SoftmaxTopK(4))),
        # Names of kinds and roles ignore case.
        (PLAIN, "gqa(window=3)", GQA, lambda a: replace(a, window=3)),
        (PLAIN, "ATTN=Mqa", GQA, lambda a: replace(a, kv_heads=1)),
        (PLAIN, "rope=nope", RoPE, NoPE()),
        (PLAIN, "GQA(rope=nope)", RoPE, NoPE()),
        (PLAIN, "GQA(qk_norm=rmsnorm(eps=0.5))", GQA, lambda a: replace(a, qk_norm=RMSNorm(0.5))),
        (RICH, "GQA(window=none, sinks=false)", GQA, lambda a: replace(a, window=None, sinks=False)),
        (RICH, "GQA(qk_norm_over=projection)", GQA, lambda a: replace(a, qk_norm_over="projection")),
        (RICH, "RoPE(theta=1e6)", RoPE, lambda r: replace(r, theta=1e6)),
        (PLAIN, "RoPE(scaling=LinearScaling(factor=4))", RoPE, lambda r: replace(r, scaling=LinearScaling(4))),
        (ROUTED, "GLU(hidden=48)", GLU, lambda f: replace(f, hidden=48)),
        (ROUTED, "MoE(shared=none)", MoE, lambda m: replace(m, shared=None)),
        (RICH, "RMSNorm(eps=1e-3)", RMSNorm, RMSNorm(1e-3)),
        (RICH, "Decoder(tied=true)", Decoder, lambda d: replace(d, tied=True)),
        (RICH, "act=SwiGLU", GeGLU, SwiGLU()),
        (RICH, "rope = NoPE()", RoPE, NoPE()),
        (RICH, "norm=RMSNorm(eps=1)", RMSNorm, RMSNorm(1)),
        # A field of a required part.
        (ROUTED, "MoE(k=3)", SoftmaxTopK, SoftmaxTopK(3)),
        (ROUTED, "MoE(hidden=16)", MoE, lambda m: replace(m, expert=GLU(16))),
        (RICH, "GQA(theta=5e5)", RoPE, lambda r: replace(r, theta=5e5)),
        # Aliases of GQA.
        (PLAIN, "attn=MHA", GQA, lambda a: replace(a, kv_heads=8)),
        (PLAIN, "attn=MQA", GQA, lambda a: replace(a, kv_heads=1)),
        (PLAIN, "attn=SWA(window=3)", GQA, lambda a: replace(a, window=3)),
        (PLAIN, "MHA(heads=4)", GQA, lambda a: replace(a, heads=4, kv_heads=4)),
        (PLAIN, "SWA(window=3)", GQA, lambda a: replace(a, window=3)),
        (RICH, "SWA(window=3)", GQA, lambda a: replace(a, window=3) if a.window else a),
    ],
)
def test_a_swap_equals_the_swap_in_python(before, text, kind, change) -> None:
    assert swapped(before, text) == swap(before, kind, change) != before


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("GQA(window=3) every 2", {1, 3, 5}),
        ("GQA(window=3) except every 2", {0, 2, 4}),
        ("SWA(window=3)   except  every 4 ", {0, 1, 2, 4, 5}),
        ("GQA(window=3) every 6", {5}),
        ("GQA(window=3) every 1", {0, 1, 2, 3, 4, 5}),
        ("GQA(window=3) except every 9", {0, 1, 2, 3, 4, 5}),
        ("GQA(window=3) in 4", {4}),
        ("GQA(window=3) in 0,2, 4-5", {0, 2, 4, 5}),
        ("GQA(window=3) in -1,0-1", {0, 1, 5}),
        ("GQA(window=3) in -3--2", {3, 4}),
        ("GQA(window=3) in 4 - -1", {4, 5}),
        ("GQA(window=3) except in 0,-1", {1, 2, 3, 4}),
    ],
)
def test_a_swap_of_some_layers(text, changed) -> None:
    before = model(*[(ATTN, FFN)] * 6)
    which = [layer.mixer.window == 3 for layer in swapped(before, text).layers]
    assert which == [i in changed for i in range(6)]
    assert swapped(before, text) == swap_layers(before, lambda i: i in changed, GQA, lambda a: replace(a, window=3))


def test_some_layers_of_a_role_and_of_norms() -> None:
    before = model(*[(ATTN, FFN)] * 4)
    experts = swapped(before, "ffn=MoE(experts=4, k=2) every 2")
    assert [isinstance(layer.feed_forward, MoE) for layer in experts.layers] == [False, True, False, True]
    moved = swapped(before, "Norm=OLMo2 except every 2")
    assert [layer.attn.placement for layer in moved.layers] == ["olmo", "pre", "olmo", "pre"]
    assert swapped(moved, "RMSNorm(eps=0.5) every 4").norm == before.norm  # the final norm is in no layer
    assert apply_swap(before, "GQA(window=4) every 2") == (before, [])


@pytest.mark.parametrize(
    ("word", "place"), [("pre", pre), ("olmo", olmo), ("olmo2", olmo), ("sandwich", sandwich), ("post", post)]
)
def test_norms_move(word, place) -> None:
    assert set(PLACEMENTS) == {"pre", "olmo", "sandwich", "post", "hyper"}
    for before in (model((ATTN, FFN), place=each) for each in (pre, olmo, sandwich, post)):
        assert swapped(before, f"norm={word}") == model((ATTN, FFN), place=place)
    assert swapped(swapped(before, "norm=hyper"), f"norm={word}") == model((ATTN, FFN), place=place)


def test_new_attention_takes_fields_of_equal_name_from_the_old() -> None:
    after, dropped = apply_swap(RICH, f"attn={LATENT}")
    wanted = MLA(8, 24, 16, 8, 4, 12, norm=QK_NORM, rope=ROPE, scale=0.5)  # heads, rope and scale; QK-norm's norm
    assert {layer.mixer for layer in after.layers} == {wanted}
    assert dropped == ["window 4", "QK-norm per head", "biases", "sinks"]


def test_a_latent_norm_is_the_layers_norm_where_there_is_no_qk_norm() -> None:
    assert swapped(PLAIN, f"attn={LATENT}").layers[0].mixer.norm == NORM


def test_experts_are_copies_of_the_replaced_feed_forward() -> None:
    wanted = MoE(4, FFN, SoftmaxTopK(2))
    for text in ("ffn=MoE(experts=4, k=2)", "ffn=MoE(experts=4, router=SoftmaxTopK(k=2))"):
        after, dropped = apply_swap(RICH, text)
        assert {layer.ffn.block for layer in after.layers} == {wanted}
        assert dropped == []


def test_the_router_is_the_kind_that_takes_the_fields_given() -> None:
    after = swapped(PLAIN, "ffn=MoE(experts=8, hidden=16, k=2, groups=4, keep=2, scale=2.5)")
    assert after.layers[0].ffn.block == MoE(8, GLU(16), GroupedSigmoidTopK(2, 4, 2, 2.5))


def test_a_feed_forward_in_the_place_of_experts_is_one_expert() -> None:
    after, dropped = apply_swap(ROUTED, "ffn=GLU")
    assert [layer.ffn.block for layer in after.layers] == [FFN, GLU(32)]
    assert dropped == ["shared expert"]


def test_missing_fields_come_from_the_other_layers() -> None:
    assert [layer.ffn.block for layer in swapped(ROUTED, "ffn=MoE").layers] == [MOE, MOE]


def test_a_norm_is_added_without_naming_its_fields() -> None:
    assert swapped(PLAIN, "GQA(qk_norm=RMSNorm)").layers[0].mixer.qk_norm == NORM


def test_scaling_is_dropped_with_the_rotation() -> None:
    assert apply_swap(RICH, "rope=NoPE")[1] == ["linear x8"]
    assert apply_swap(RICH, "GQA(rope=NoPE)")[1] == ["linear x8"]


def test_a_feature_removed_by_name_is_not_listed_as_dropped() -> None:
    assert apply_swap(RICH, "GQA(window=none, sinks=false, bias=false, qk_norm=none)")[1] == []


@pytest.mark.parametrize("text", ["GQA(heads=8)", "norm=sandwich", "rope=RoPE", "attn=GQA", "act=GeGLU"])
def test_a_swap_for_the_present_value_changes_nothing(text) -> None:
    assert apply_swap(RICH, text) == (RICH, [])


@pytest.mark.parametrize(
    ("before", "text", "says"),
    [
        (PLAIN, "", "a block is missing"),
        (PLAIN, "attn=", "a block is missing"),
        (PLAIN, "GQQ(window=3)", "unknown block 'GQQ'; did you mean GQA?"),
        (PLAIN, "rope=noppe", "unknown block 'noppe'; did you mean NoPE"),
        (PLAIN, "GQA(qk_norm=RMSNrom)", "unknown block 'RMSNrom'; did you mean RMSNorm?"),
        (PLAIN, "frob=1", "unknown role 'frob'; known: act, attn, compressor"),
        (PLAIN, "attn=3", "'3' is not a block: write KIND(field=value)"),
        (PLAIN, "GQA(head_dim=dim/7)", "head_dim=dim / 7 is 32/7, about 4.57143: it must be a whole number"),
        (PLAIN, "GQA(head_dim=dimm/4)", "unknown field 'dimm'; did you mean dim"),
        (PLAIN, "GQA(window=context/4)", "unknown field 'context'"),  # it is none
        (PLAIN, "GQA(head_dim=dim/0)", "dim / 0 divides by zero"),
        (PLAIN, "GQA(window=1e999-1)", "is beyond the largest number"),
        (PLAIN, "GQA(window=1e300*1e300)", "is beyond the largest number"),
        (PLAIN, "GQA(window=0.3k)", "'0.3k' is not a number of tokens"),
        (PLAIN, "GQA(window=dim**2)", "'dim ** 2' must be a number"),
        (PLAIN, "GQA(window=dim.real)", "'dim.real' must be a number"),
        (PLAIN, "GQA(window=4j)", "'4j' must be a number"),
        (PLAIN, "GQA(window=true+1)", "unknown field 'true'"),
        (PLAIN, "GQA(window=dim-dim)", "window must be a positive integer or None, not 0"),
        (PLAIN, "GQA(window=" + "9" * 10_000 + ")", "must have at most 10,000 characters"),
        (PLAIN, "layers=0", "layers must be an integer from 1 to 1,000, not 0"),
        (PLAIN, "layers=2.5", "layers must be an integer from 1 to 1,000, not 2.5"),
        (PLAIN, "layers=9M", "layers must be an integer from 1 to 1,000"),
        (PLAIN, "layers=GLU", "unknown field 'GLU'"),
        (PLAIN, "layers=none", "layers must be an integer"),
        (PLAIN, "layers=layers/3", "layers=layers / 3 is 2/3, about 0.666667: it must be a whole number"),
        (PLAIN, "layers=4 every 2", "layers= changes the whole model"),
        (PLAIN, "layers=4 from qwen3", "from NAME needs a KIND before it"),
        (PLAIN, "norm=post from qwen3", "from NAME needs a KIND before it"),
        (PLAIN, "attn=MLA from qwen3", "qwen3 has no MLA, only GQA"),
        (PLAIN, "attn=MLA from qwen3-0.6b", "qwen3-0.6b has no MLA, only GQA"),
        (PLAIN, "attn=MLA from nowhere", "unknown model 'nowhere'"),
        (PLAIN, "attn=from qwen3-next", "at character 6"),
        (PLAIN, "GQA(window=3) in 2", "there is no layer 2: the model has 2, from 0 to 1"),
        (PLAIN, "GQA(window=3) in 0,-3", "there is no layer -3"),
        (PLAIN, "GQA(window=3) in 1-0", "the range '1-0' ends before it starts"),
        (PLAIN, "GQA(window=3) in all", "'all' is not a layer or a range of layers: write in 0,2,5-7"),
        (PLAIN, "GQA(window=3) in 0,,1", "'' is not a layer"),
        (PLAIN, "GQA(window=3) except in 0-1", "'except in 0-1' chooses none of 2 layers"),
        (PLAIN, "norm=sandwhich", "did you mean sandwich"),
        (PLAIN, "mixer=MQA", "unknown role 'mixer'; known: act, attn, compressor, ffn"),
        (PLAIN, "GQA(rope=none)", "rope must be Position, such as NoPE(), not None"),
        (PLAIN, "attn=GLU(hidden=3)", f"GLU does not go into attn, which takes {MIXERS}"),
        (PLAIN, "MLA(kv_rank=3)", "there is no MLA here, only Branch, Decoder, GLU, GQA, Layer, RMSNorm, RoPE, SwiGLU"),
        (PLAIN, "MLA(kv_rank=3)", "attn=MLA(...) puts one in"),
        (PLAIN, "router=SoftmaxTopK(k=2)", "there is no router here; MoE(router=...) has one"),
        (PLAIN, "GQA", "nothing to edit: write GQA(field=value) with a field of heads, kv_heads"),
        (PLAIN, "GQA(windw=3)", "GQA has no field 'windw'; did you mean window? (fields: heads, kv_heads"),
        (PLAIN, "ffn=MoE(experts=2, k=1, hiden=3)", "did you mean hidden?"),
        (PLAIN, "GQA(window=)", "at character 12"),
        (PLAIN, "  attn = GQA(window=4k, heads=4q)", "at character 31"),
        (PLAIN, "GQA(3)", "GQA: every value needs a field name"),
        (PLAIN, "GQA(**x)", "duplicate field, or a field given by **"),
        (PLAIN, "GQA(window=1, window=2)", "duplicate field"),
        (PLAIN, "GQA(window=[1])", "'[1]' must be a number"),
        (PLAIN, "GQA(window=open('x'))", "open: every value needs a field name"),
        (PLAIN, "(" * 1000, "swap"),
        (PLAIN, "GQA(window=" + "9" * 5000 + ")", "swap"),
        (PLAIN, "GQA(\0)", "swap"),
        (PLAIN, "attn=SWA", "SWA needs a window"),
        (PLAIN, "attn=MQA(kv_heads=2)", "MQA sets kv_heads itself"),
        (PLAIN, "GQA(kv_heads=3)", "kv_heads=3 must divide heads=8"),
        (PLAIN, "GQA(window=-3)", "window"),
        (PLAIN, "GQA(window=2.5)", "window"),
        (PLAIN, "GQA(sinks=none)", "sinks"),
        (PLAIN, "GQA(rope=GLU(hidden=3))", "rope"),
        (PLAIN, "GQA(qk_norm_over=layer)", "qk_norm_over"),
        (PLAIN, "Decoder(layers=3)", "layers"),
        (
            ROUTED,
            "MoE(groups=4)",
            "MoE has no field 'groups'; router=GroupedSigmoidTopK(groups=...) has one (fields: exp",
        ),
        (ROUTED, "MoE(k=9)", "k=9 is above the 8 experts"),
        (PLAIN, "GQA(window=3) every 0", "every 0: N must be at least 1"),
        (PLAIN, "GQA(window=3) every 99", "'every 99' chooses none of"),
        (PLAIN, "GQA(window=3) except every 1", "'except every 1' chooses none of"),
        (PLAIN, "Decoder(tied=true) every 1", "that were chosen has a Decoder"),
        (ROUTED, "MoE(k=1) except every 2", "none of the 1 layers that were chosen has a MoE"),
        (PLAIN, "GQA(windw=3) every 1", "GQA has no field 'windw'"),
        (PLAIN, "GQA(window=3) every", "at character"),
        (PLAIN, "every 2", "at character 7"),
    ],
)
def test_a_wrong_swap_is_a_one_line_error(before, text, says) -> None:
    with pytest.raises(UsageError) as caught:
        apply_swap(before, text)
    assert says in str(caught.value)
    assert str(caught.value).startswith("swap ")


@pytest.mark.parametrize(
    ("text", "shows"),
    [
        ("GQA(window=", True),
        ("(" * 1000, True),
        ("attn=3", True),
        ("GQQ(window=3)", True),
        ("mixer=MQA", True),
        ("GQA(windw=3)", True),
        ("GQA(head_dim=dimm/4)", True),
        ("GQA(window=3) in 9", False),
        ("GQA(window=3) every 0", False),
        ("GQA(window=3) every 99", False),
        ("attn=SWA", False),
        ("MLA(kv_rank=3)", False),
        ("layers=0", False),
        ("attn=MLA from nowhere", False),
        ("GQA(kv_heads=3)", False),
    ],
)
def test_the_grammar_is_shown_for_what_cannot_be_parsed_and_for_unknown_names(text: str, shows: bool) -> None:
    with pytest.raises(UsageError) as caught:
        apply_swap(PLAIN, text)
    assert getattr(caught.value, "__notes__", []) == [SUMMARY] * shows


def test_the_summary_fits_a_terminal_and_shows_swaps_that_work() -> None:
    assert max(map(len, SUMMARY.splitlines())) < 80
    for kind in ("GQA(window=4k)", "attn=MLA(kv_rank=dim/4)", "attn=GatedDeltaNet from qwen3-next"):
        assert kind in SUMMARY
        assert swapped(PLAIN, kind) != PLAIN
    roles = {kind.role for kind in Spec.kinds.values()}
    assert {"attn", "ffn", "rope", "norm", "router", "act"} <= roles
    assert all(place in SUMMARY for place in PLACEMENTS)


@over(names())
def test_another_number_of_layers_keeps_the_pattern(name) -> None:
    before = spec(name)
    assert apply_swap(before, f"layers={len(before.layers)}") == (before, [])
    twice = swapped(before, "layers=layers*2")
    assert twice.layers == at_depth(before.layers, 2 * len(before.layers))
    assert set(twice.layers) == set(before.layers)
    assert replace(twice, layers=before.layers) == before
    assert len(swapped(before, "layers=24").layers) == 24


def test_a_name_in_the_place_of_a_spec_is_refused_with_the_way_to_get_one() -> None:
    for call in (
        lambda: apply_swap("llama3.2-1b", "attn=MQA"),
        lambda: swap("llama3.2-1b", GQA, NoPE()),
        lambda: swap_layers("llama3.2-1b", lambda i: True, GQA, NoPE()),
    ):
        with pytest.raises(UsageError, match=r"not a str: give it zoo\.spec\('llama3\.2-1b'\)"):
            call()
    for call in (
        lambda: swap(PLAIN, "GQA", NoPE()),
        lambda: swap_layers(PLAIN, lambda i: True, "GQA", NoPE()),
    ):
        with pytest.raises(UsageError, match=r"needs a kind of block such as zoo\.GQA, not 'GQA'"):
            call()
    with pytest.raises(UsageError, match=r"a swap is a text such as 'GQA\(window=512\)', not a GLU"):
        apply_swap(PLAIN, FFN)
    assert zoo.apply_swap is apply_swap


def test_an_impossible_model_is_a_spec_error() -> None:
    with pytest.raises(SpecError):
        apply_swap(PLAIN, "GQA(kv_heads=3)")


WORDS = [
    *Spec.kinds,
    "MHA",
    "SWA",
    "attn=",
    "norm=",
    "window=",
    "rope=",
    "k=",
    "(",
    ")",
    ",",
    " ",
    "3",
    "4k",
    "dim",
    "/",
    "layers=",
    " from qwen3",
    " in ",
    "-1e3",
    "none",
    "'",
    " every ",
    " except",
]


@given(st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=3)), max_size=9).map("".join))
@example("GQA(window=\n3)")
@example("f'{1}'()")
def test_any_text_is_a_model_or_a_usage_error(text) -> None:
    try:
        after, _ = apply_swap(ROUTED, text)
    except UsageError:
        return
    assert isinstance(after, Decoder)


EVERYWHERE = [
    "GQA(window=none)",
    "attn=MQA(head_dim=16)",
    "attn=SWA(kv_heads=1, head_dim=16, window=5)",
    f"attn={LATENT}",
    "ffn=MoE(experts=4, router=GroupedSigmoidTopK(k=2, groups=2, keep=2, scale=1.5))",
    "ffn=GLU(hidden=24)",
    "act=SwiGLU",
    "rope=NoPE",
    "rope=RoPE(theta=1e4, scaling=LinearScaling(factor=2))",
    *(f"norm={word}" for word in PLACEMENTS),
]


@over(names(), representatives())
def test_every_published_model_takes_every_swap(name) -> None:
    for text in EVERYWHERE:
        before = spec(name, tiny=True)
        needed = GQA if text.startswith("GQA") else GLU if text.startswith("act") else Spec
        if not any(isinstance(node, needed) for node in before.walk()):
            continue
        after, _ = apply_swap(before, text)
        assert after.params() == sum(each.numel() for each in Model(after).parameters())
