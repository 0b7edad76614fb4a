"""FLOPs by part against torch's own counter; ceilings, and costs of one of several cards, against figures by hand."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import zoo
from benchmarks.analytic import roofline
from benchmarks.analytic.kv import InferenceConfig, cache_row, crossing_row, fit_row
from benchmarks.analytic.models import NamedSpec, one
from benchmarks.analytic.params import param_row
from benchmarks.analytic.roofline import FLOP_PARTS, PHASES, Device, flop_row, forward_pass
from benchmarks.analytic.weight_forms import PLAIN
from benchmarks.commands.flops import tables
from benchmarks.commands.kv import cache as kv_table
from benchmarks.output.show import three
from tests.presets import over
from zoo.architectures import families
from zoo.cli.tables import Format
from zoo.costs import CacheSpec
from zoo.errors import UsageError
from zoo.registry import Mixer

BF16 = torch.bfloat16
H100 = roofline.device("h100")
EIGHT = InferenceConfig(tp=8)
UNIT = Device("one of each", flops=1.0, bandwidth=1.0)


def part_of(path: str) -> str | None:
    """The part whose FLOPs torch counts under a module's path; attention's scores are what is left of its block."""
    *_, branch, block, name = ("", "", *path.split("."))
    if (branch, block) == ("attn", "block"):
        return "indexer" if name == "indexer" else "projections"
    if path.endswith((".attn.weights", ".ffn.weights")):
        return "streams"
    experts = {"experts": "routed", "shared": "shared", "router": "router"}
    return experts.get(name) if (branch, block) == ("ffn", "block") else None


def counted(model: torch.nn.Module, new: int) -> dict[str, int]:
    """FLOPs of one forward by part, from torch's counter alone."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, depth=None) as counter:
        model(torch.zeros(1, new, dtype=torch.long))
    by_path = {path.partition(".")[2]: sum(ops.values()) for path, ops in counter.get_flop_counts().items()}
    parts: Counter[str] = Counter(head=counter.get_total_flops())
    for path, number in by_path.items():
        if part := part_of(path):
            parts[part] += number
        if path.endswith("attn.block"):
            parts["scores"] += number
        if path.endswith("ffn.block") and f"{path}.router" not in by_path:
            parts["ffn"] += number
        if path == "per_layer" or path.endswith("inputs.block"):
            parts["inputs"] += number
            parts["head"] -= number * (path == "per_layer")
        if path.startswith("layers.") and path.count(".") == 1:
            parts["head"] -= number
        if path == "contraction":
            parts["streams"] += number
            parts["head"] -= number
        if path.endswith((".attn", ".ffn")) and f"{path}.weights" in by_path:  # what is neither its block nor weights
            parts["streams"] += number - by_path[f"{path}.block"] - by_path[f"{path}.weights"]
    parts["scores"] -= parts["projections"] + parts["indexer"]
    return dict(parts)


@over(families())
def test_every_part_is_what_torch_counts(family: str) -> None:
    model = zoo.build(family, tiny=True)
    found, expected = counted(model, 40), dict(model.spec.flop_breakdown(0, 40, causal=False))
    if "entries" in expected:  # torch counts one attention
        expected["scores"] += expected.pop("entries")
    if "indexer" in expected:  # up-projections are folded into what is chosen, outside their modules
        for parts in (found, expected):
            parts["scores"] += parts.pop("projections") + parts.pop("indexer")
    assert {part: n for part, n in found.items() if n} == {part: n for part, n in expected.items() if n}


def rows(name: str, context: int = 4096, batch: int = 1, device: Device = H100) -> tuple[dict, dict]:  # type: ignore[type-arg]
    """The rows of decode and prefill."""
    found = {phase: flop_row(one(name), phase, context, InferenceConfig(batch), device) for phase in PHASES}
    return found["decode"], found["prefill"]


@over(zoo.names())
def test_parts_add_up_and_masking_only_saves(name: str) -> None:
    spec = zoo.spec(name)
    recurrent = (layer.cache_spec() for layer in spec.layers if not layer.cache_spec().per_token)
    states = [state for cache in recurrent for state in cache.state if state.in_float32]
    for row in rows(name, batch=3):
        assert sum(row[f"{part}_flops"] for part in FLOP_PARTS) + row["other_flops"] == row["flops"]
        assert states or row["full_square_flops"] >= row["flops"]  # chunks may cost less than the recurrence itself
        assert row["other_flops"] == 0
    one_token, _ = rows(name)
    latent = [layer.mixer for layer in spec.layers if isinstance(layer.mixer, zoo.MLA)]
    seen = [mixer.flop_growth("scores").reach.pairs(4095, 1) for mixer in latent]
    along = sum(2 * n * mixer.heads * mixer.rope_dim for n, mixer in zip(seen, latent, strict=True))  # rotary values
    updates = sum(2 * math.prod(state.shape) for state in states)  # outer products, which are no matrix products
    assert one_token["flops"] == spec.flops(4095, 1) == one_token["full_square_flops"] - along + updates


def test_llama_by_hand() -> None:
    """Decode of Llama 3.1 8B at 4,096 tokens: every matrix but the embedding is read, and 4,096 keys and values."""
    matrices = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14_336) + 4096 * 128_256
    weights = 2 * (matrices + 65 * 4096 + 4096)  # norms, and one row of the embedding
    cache = 4096 * 131_072
    row, _ = rows("llama3.1-8b")
    assert (row["weight_bytes_read"], row["kv_bytes"]) == (weights, cache)
    assert row["flops"] == 2 * matrices + 32 * 4 * 4096 * 4096
    assert row["tokens_per_s"] == pytest.approx(3.35e12 / (weights + cache))
    assert row["bound"] == "memory"
    assert row["flops_per_byte"] == pytest.approx(row["flops"] / (weights + cache))


def test_a_batch_shares_the_weights_but_not_the_cache() -> None:
    spec = zoo.spec("llama3.1-8b")
    single, many = (forward_pass(spec, "decode", 4096, InferenceConfig(batch)) for batch in (1, 64))
    assert many.kv_bytes == 64 * single.kv_bytes
    assert many.flops == 64 * single.flops
    assert many.weight_bytes - single.weight_bytes == 63 * 4096 * 2  # rows of the embedding


def test_a_larger_batch_hits_more_experts() -> None:
    spec = zoo.spec("qwen3-30b-a3b")
    expert = 48 * 3 * 2048 * 768
    for batch in (1, 2, 16, 1024):
        missed = (1 - 8 / 128) ** batch
        rest = spec.params() - 128 * expert - 151_936 * 2048 + batch * 2048
        expected = 2 * (rest + 128 * (1 - missed) * expert)
        assert forward_pass(spec, "decode", 100, InferenceConfig(batch)).weight_bytes == pytest.approx(
            expected, rel=1e-12
        )


def test_time_is_the_longer_of_arithmetic_and_traffic() -> None:
    work = forward_pass(zoo.spec("qwen3-0.6b"), "prefill", 512, InferenceConfig(2))
    traffic = work.weight_bytes + work.kv_bytes
    assert work.seconds(UNIT) == work.flops
    assert work.seconds(Device("slow memory", 1e30, 1.0)) == traffic
    assert work.tokens_per_s(UNIT) == 1024 / work.flops
    ridge = Device("at the ridge", work.flops, traffic * 1.01)
    assert (work.bound(UNIT), work.bound(ridge)) == ("compute", "compute")
    assert work.bound(Device("below it", work.flops, traffic * 0.99)) == "memory"


def test_prefill_keeps_one_position_of_logits() -> None:
    _, row = rows("qwen3-0.6b", context=100)
    assert row["head_flops"] == 2 * 1024 * 151_936
    assert row["kv_bytes"] == zoo.spec("qwen3-0.6b").kv_bytes(100)


def test_whether_a_model_fits_is_about_weights_and_cache() -> None:
    assert [row["fits"] for row in rows("llama3.1-8b")] == [True, True]
    assert [row["fits"] for row in rows("llama3.1-8b", context=10**6)] == [False, False]
    assert [row["fits"] for row in rows("llama3.1-70b")] == [False, False]
    assert [row["fits"] for row in rows("llama3.1-70b", device=UNIT)] == [None, None]


def test_devices_have_a_source_and_plausible_rates() -> None:
    assert set(roofline.devices()) == {"a100", "h100", "h200", "m3-max", "rtx4090"}
    for device in roofline.devices().values():
        assert len(device.source) > 40
        assert device.memory
        assert 30 < device.flops / device.bandwidth < 400  # FLOPs a byte where compute takes over
    with pytest.raises(UsageError, match=r"unknown device 'h1000'; did you mean h100"):
        roofline.device("h1000")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0.00"), (0.9999, "1.00"), (0.01234, "0.0123"), (9.999, "10.0"), (99.96, "100"), (12_345, "12,345")],
)
def test_three_digits_without_an_exponent(value: float, shown: str) -> None:
    assert three(value) == shown


@dataclass(frozen=True)
class _Averaging(Mixer):
    """A mixer that states its total costs but not the costs of its parts."""

    width: int

    def resized(self, to: Any) -> dict[str, Any]:
        return {}

    def build(self, dim: int) -> torch.nn.Module:
        raise NotImplementedError

    def params(self, dim: int) -> int:
        return dim * self.width

    def flops(self, dim: int, past: int, new: int, causal: bool = True) -> int:
        return 2 * new * dim * self.width

    def cache_spec(self) -> CacheSpec:
        return CacheSpec((("sum", (1, self.width)),))

    def describe(self) -> str:
        return f"the mean of {self.width}"


def test_a_block_without_parts_of_its_own_is_counted_whole() -> None:
    """Its parameters are listed under its role, and its FLOPs, which are neither projections nor scores, under "other".
    It has no usual formula."""
    averaging = NamedSpec("averaging", zoo.swap(zoo.spec("qwen3-0.6b"), zoo.GQA, _Averaging(128)))
    parts = param_row(averaging)
    assert (parts["attn_params"], parts["other_params"]) == (28 * 1024 * 128, 0)
    row = flop_row(averaging, "decode", 4096, InferenceConfig(), H100)
    assert (row["other_flops"], row["projections_flops"]) == (28 * 2 * 1024 * 128, 0)
    assert "other" in next(tables([averaging], 4096, InferenceConfig(), H100)).text(Format.table)
    cache = cache_row(averaging, 4096, InferenceConfig())
    assert cache["kv_bytes"] == 28 * 128 * 4096 * 2
    assert {cache[key] for key in ("usual_formula_kv_bytes", "usual_formula_error", "usual_formula")} == {None}
    assert "usual" not in kv_table([cache]).text(Format.table).splitlines()[2]


def test_llama_70b_on_eight_cards_by_hand() -> None:
    """Two all-reduces per layer and one for the embedding, each of 8,192 elements of 2 bytes; one row of logits."""
    spec = zoo.spec("llama3.1-70b")
    sums, logits = (2 * 80 + 1) * 8192 * 2, 128_256 * 2
    sent = forward_pass(spec, "decode", 4096, EIGHT).sent_bytes
    assert sent == 2 * 7 / 8 * sums + 7 / 8 * logits
    row, whole = (flop_row(one("llama3.1-70b"), "decode", 4096, config, H100) for config in (EIGHT, InferenceConfig()))
    assert row["flops"] * 8 == whole["flops"]
    assert row["sending_seconds"] == pytest.approx(row["sent_bytes"] / 450e9, rel=1e-6)
    assert row["seconds"] == pytest.approx(
        (row["weight_bytes_read"] + row["kv_bytes"]) / 3.35e12 + row["sending_seconds"]
    )
    assert (whole["sent_bytes"], whole["sending_seconds"], whole["tp"], row["tp"]) == (0, 0, 1, 8)


def test_what_fits_is_counted_on_each_card() -> None:
    model = one("llama3.1-70b")
    alone, divided = (fit_row(model, 80 * 10**9, config) for config in (InferenceConfig(), EIGHT))
    assert alone["limit"] == "weights"
    assert divided["limit"] == "context"
    norms = (2 * 80 + 1) * 8192 * 2
    assert divided["weight_bytes"] == (alone["weight_bytes"] - norms) // 8 + norms  # every rank has the norms
    assert cache_row(model, 4096, EIGHT)["kv_bytes"] * 8 == cache_row(model, 4096, InferenceConfig())["kv_bytes"]


def test_latents_are_not_divided() -> None:
    """Every card keeps all latents, but only one of Llama's eight KV heads."""
    latent, heads = one("deepseek-v3-671b"), one("llama3.1-8b")
    assert cache_row(latent, 4096, EIGHT)["kv_bytes"] == cache_row(latent, 4096, InferenceConfig())["kv_bytes"]
    assert crossing_row(latent, heads, InferenceConfig())["smaller"] == "deepseek-v3-671b"
    assert crossing_row(latent, heads, EIGHT)["smaller"] == "llama3.1-8b"


def test_more_sequences_send_more() -> None:
    spec = zoo.spec("gpt-oss-120b")
    single, many = (forward_pass(spec, "decode", 4096, replace(EIGHT, batch=batch)) for batch in (1, 16))
    assert many.sent_bytes == 16 * single.sent_bytes
    assert forward_pass(spec, "decode", 4096, InferenceConfig(cache=torch.float16)).sent_bytes == 0
    narrow = replace(EIGHT, weights=PLAIN[torch.float8_e4m3fn])  # activations stay in 16 bits
    assert forward_pass(spec, "decode", 4096, narrow).sent_bytes == single.sent_bytes


def test_whole_experts_weigh_the_same_and_send_tokens() -> None:
    """With 8 experts per token, each card sends its share of the tokens to their experts and gets the outputs back."""
    whole = replace(EIGHT, ep=8)
    model = one("deepseek-v3-671b")
    by_width, by_expert = (fit_row(model, 10**12, config)["weight_bytes"] for config in (EIGHT, whole))
    assert by_expert == by_width
    sent = [forward_pass(model.spec, "prefill", 4096, config).sent_bytes for config in (EIGHT, whole)]
    rows, ids, counts = 2 * 8 * 7168 * 2 * 4096 / 8, 8 * 4 * 4096 / 8, 2 * 8 * 4
    assert sent[1] - sent[0] == pytest.approx(58 * 7 / 8 * (rows + ids + counts * 8 / 8), rel=1e-3)
    with pytest.raises(UsageError, match="--ep 4 with --tp 8"):
        replace(EIGHT, ep=4)
