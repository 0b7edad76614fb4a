"""Rotation against complex multiplication, and frequencies against the papers and the reference implementation."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import zoo
from tests.configs import newer
from tests.exact import assert_equal, in_float64
from tests.models import one_layer_of_each, randomised, tokens_of
from tests.reference import published
from zoo import LinearScaling, Llama3Scaling, LongRoPE, NoPE, ProportionalRoPE, RoPE, YarnScaling
from zoo.blocks import positions as module
from zoo.blocks.positions import _frequencies
from zoo.blocks.rope_scaling import yarn_gain

CPU = torch.device("cpu")
ROPES: dict[str, tuple[RoPE, int]] = {
    f"{rope.describe()}, width {width}": (rope, width)
    for name in zoo.names()
    for layer in zoo.spec(name).layers
    for rope, width in layer.tables()
    if isinstance(rope, RoPE)
}
# Ramps that begin before the first dimension, and that end after the last.
ROPES |= {
    f"{words} ramp": (RoPE(1e4, scaling), 64)
    for words, scaling in {
        "an early": YarnScaling(8, original=100, gain=1.0),
        "an early, unrounded": YarnScaling(8, original=100, gain=1.3, truncate=False),
        "a late": YarnScaling(8, original=10**9, gain=1.0, fast=1e6),
    }.items()
}
# No wavelength lies between those that are kept and those that are divided, as in Llama 4 Scout.
ROPES["a step at one wavelength"] = (RoPE(5e5, Llama3Scaling(16, original=8192, low=1.0, high=1.0)), 128)


def paper(rope: RoPE, width: int) -> list[float] | list[list[float]]:
    """Returns the radians per token of each pair in float64, derived again from the papers; for LongRoPE, within the
    original context and beyond it."""
    turning = int(width * rope.fraction) // 2
    if isinstance(rope, ProportionalRoPE):  # the pairs that do not turn stand at frequency 0
        return [rope.theta ** (-2 * i / width) if i < turning else 0.0 for i in range(width // 2)]
    width = 2 * turning
    plain = [rope.theta ** (-2 * i / width) for i in range(turning)]
    scaling = rope.scaling
    match scaling:
        case None:
            return plain
        case LinearScaling():  # positions m become m / s
            return [w / scaling.factor for w in plain]
        case Llama3Scaling():  # by wavelength: kept below original / high, divided above original / low
            return [
                blended(w, scaling, gamma(scaling.original * w / (2 * math.pi), scaling.low, scaling.high))
                for w in plain
            ]
        case YarnScaling():  # by dimension: the ramp's ends are where exactly fast or slow turns fit
            ends = [
                width * math.log(scaling.original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))
                for turns in (scaling.fast, scaling.slow)
            ]
            if scaling.truncate:
                ends = [math.floor(ends[0]), math.ceil(ends[1])]
            low, high = max(ends[0], 0), min(ends[1], width - 1)
            return [blended(w, scaling, 1 - gamma(i, low, high)) for i, w in enumerate(plain)]
        case LongRoPE():  # theta^(-2i / d) / lambda_i
            return [[w / by for w, by in zip(plain, factors, strict=True)] for factors in (scaling.short, scaling.long)]
    raise AssertionError(f"no paper for {scaling}")


def gamma(x: float, low: float, high: float) -> float:
    """0 up to `low`, 1 from `high`, linear between."""
    if low == high:
        return float(x >= high)
    return min(max((x - low) / (high - low), 0.0), 1.0)


def blended(w: float, scaling: Llama3Scaling | YarnScaling, keep: float) -> float:
    return keep * w + (1 - keep) * w / scaling.factor


def test_frequencies_are_the_papers() -> None:
    for case, (rope, width) in ROPES.items():
        expected = torch.tensor(paper(rope, width))
        assert_equal(_frequencies(rope, rope.rotated(width), CPU, torch.float64).log(), expected.log(), case)


def references(name: str, dtype: torch.dtype) -> Iterator[tuple[RoPE, Tensor, Tensor, float]]:
    """Yields each layer's RoPE, its frequencies in the zoo and in transformers, computed from the published config, and
    the gain in transformers."""
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config, layers = AutoConfig.for_model(**newer(name)), zoo.spec(name).layers
    nested = "full_attention" in config.rope_parameters
    kinds = config.layer_types if nested else [None] * len(layers)
    if "compress" in config.rope_parameters:  # by whether a layer compresses its keys
        nested, plain = True, "sliding_attention"
        kinds = ["main" if kind == plain else "compress" for kind in config.layer_types]
    for layer, kind in zip(layers, kinds, strict=True):
        if not layer.tables():
            continue
        (rope, width), *_ = layer.tables()  # a temperature's may come after it
        if rope == NoPE():
            continue
        parameters = config.rope_parameters[kind] if nested else config.rope_parameters
        if parameters["rope_type"] == "default":
            share = 1.0 if kind == "main" else parameters.get("partial_rotary_factor", 1.0)  # main: of the rotated part
            rotated = int(width * share)
            theirs, gain = 1.0 / parameters["rope_theta"] ** (torch.arange(0, rotated, 2).float() / rotated), 1.0
        else:
            said = config.per_layer_config[kind] if config.is_heterogeneous else config
            compute = ROPE_INIT_FUNCTIONS[parameters["rope_type"]]
            theirs, gain = compute(said, CPU, layer_type=kind)
            if parameters["rope_type"] == "longrope":
                beyond = compute(said, CPU, parameters["original_max_position_embeddings"] + 1, layer_type=kind)
                theirs, gain = torch.stack([theirs, beyond[0]]), beyond[1]
        yield rope, _frequencies(rope, rope.rotated(width), CPU, dtype), theirs, gain


def test_frequencies_are_the_reference_implementations() -> None:
    """Frequencies and gain equal those that transformers computes from the published config; in float32, up to the last
    bit."""
    for name, spec in ((name, zoo.spec(name)) for name in published()):
        if not any(isinstance(part, RoPE) for part in spec.walk()):
            continue
        with in_float64():
            exact = list(references(name, torch.float64))
        for rope, ours, theirs, gain in exact:
            assert_equal(ours.log(), theirs.log(), name)  # the slowest count as much as the fastest
            assert (rope.scaling.gain if rope.scaling else 1.0) == pytest.approx(gain, rel=1e-12), name
        for _, ours, theirs, _ in references(name, torch.float32):
            assert (ours.view(torch.int32) - theirs.view(torch.int32)).abs().max() <= 1, name
        assert len(exact) > sum(bool(layer.tables()) for layer in spec.layers) // 2, name


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (4.0, 4.0), (1.0, 4.0), (3.999, 4.0)])
def test_a_blend_of_any_width_is_the_reference_implementations(low: float, high: float) -> None:
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    said = {"rope_type": "llama3", "factor": 16.0, "original_max_position_embeddings": 8192}
    said |= {"low_freq_factor": low, "high_freq_factor": high, "rope_theta": 5e5}
    config = AutoConfig.for_model("llama", hidden_size=1024, num_attention_heads=8, rope_parameters=said)
    with in_float64():
        theirs, gain = ROPE_INIT_FUNCTIONS["llama3"](config, CPU)
    ours = _frequencies(RoPE(5e5, Llama3Scaling(16, 8192, low, high)), 128, CPU, torch.float64)
    assert ours.isfinite().all()
    assert_equal(ours.log(), theirs.log())
    assert gain == 1.0


def test_rotation_is_complex_multiplication() -> None:
    """The pair (x_i, x_{i + rotated/2}) rotates by position x frequency, for positions of any order and size. Elements
    after the rotated part do not change."""
    positions = torch.tensor([0, 1, 7, 100, 8191, 131_071])
    for case, (rope, width) in ROPES.items():
        x, rotated = torch.randn(2, 3, len(positions), width), rope.rotated(width)
        turned = rope.rotate(x, rope.table(positions, width, torch.float64))
        pairs = torch.complex(*x[..., :rotated].chunk(2, dim=-1))
        frequencies = _frequencies(rope, rotated, CPU, torch.float64)
        if isinstance(rope.scaling, LongRoPE):
            frequencies = frequencies[1]  # the largest position is beyond the original context
        angles = positions[:, None] * frequencies
        gain = rope.scaling.gain if rope.scaling else 1.0
        expected = pairs * torch.polar(torch.full_like(angles, gain), angles)
        assert_equal(turned, torch.cat([expected.real, expected.imag, x[..., rotated:]], dim=-1), case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_are_rotated_in_float32(dtype: torch.dtype) -> None:
    """Only the result is rounded."""
    rope, x = RoPE(1e4), torch.randn(2, 9, 16).to(dtype)
    table = rope.table(torch.arange(9), 16)
    assert torch.equal(rope.rotate(x, table), rope.rotate(x.float(), table).to(dtype))


@pytest.mark.parametrize("default", ["meta", "cpu"])
def test_tables_do_not_depend_on_the_default_device(default: str) -> None:
    """A spec is first looked up anywhere, also while a model is built on the meta device."""
    rope = RoPE(12_345.0 if default == "meta" else 12_346.0, YarnScaling(8, 512, gain=1.0))
    with torch.device(default):
        cos, sin = rope.table(torch.arange(4, device="cpu"), 64, torch.float64)
    assert cos.device.type == sin.device.type == "cpu"
    assert cos.isfinite().all()


def test_yarns_gain() -> None:
    """The gain is 0.1 mscale ln(factor) + 1, and 1 for a context that is not extended (Peng et al. 2023, equation
    22)."""
    assert yarn_gain(1.0) == yarn_gain(0.5) == 1.0
    assert yarn_gain(32) == pytest.approx(1.3465735902799727, rel=1e-15)
    assert yarn_gain(40, 1.0) == pytest.approx(1.3688879454113936, rel=1e-15)
    assert yarn_gain(40, 0.0) == 1.0


@pytest.mark.filterwarnings("ignore")  # torch warns of its own code while it exports
@pytest.mark.parametrize("name", ["qwen3", "deepseek-v3"])
def test_tables_made_while_a_model_is_exported_are_not_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing computes with tensors without values. If they were kept, every later model of the process would get them.
    The exported program is plain torch, but for experts, which no graph can loop over."""
    monkeypatch.setattr(module, "_KEPT", {})
    model = randomised(one_layer_of_each(zoo.spec(name, tiny=True)))
    tokens = tokens_of(model.spec, 1, 12)
    with torch.no_grad():
        exported = torch.export.export(model, (tokens,))
        expected = model(tokens)
        assert all(type(table) is Tensor for table in module._KEPT.values())
        assert module._KEPT
        assert_equal(exported.module()(tokens), expected)
        assert_equal(torch.export.export(model, (tokens,)).module()(tokens), expected)
    own = {str(node.target) for node in exported.graph.nodes if "zoo" in str(node.target)}
    assert own <= {"zoo.grouped_linear.default"}


def test_tables_made_in_inference_mode_serve_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT", {})
    model = randomised(zoo.spec("qwen3", tiny=True))
    tokens = tokens_of(model.spec, 1, 12)
    with torch.inference_mode():
        model(tokens)
    model(tokens).sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())
