"""Recurrent mixers and the short convolution, whole, in pieces and token by token, against the released layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.exact import assert_as_near, assert_equal, differs, in_float64
from tests.reference import randomise
from zoo import KDA, GatedDeltaNet, Mamba2, RMSNorm, ShortConv
from zoo.core.cache import Cache, NoCache, prepare_forward
from zoo.errors import SpecError
from zoo.registry import Mixer

DIM, TOKENS = 48, 150
PIECES = (70, 1, 64, 1, 1, 13)  # more than a chunk, exactly one, less than one, and single tokens
DELTA = GatedDeltaNet(key_heads=2, value_heads=6, key_dim=8, value_dim=10, conv=4, norm=RMSNorm(1e-6))
KIMI = KDA(heads=3, head_dim=8, conv=4, norm=RMSNorm(1e-5, scale_in_fp32=True))
GRANITE = Mamba2(heads=6, head_dim=16, groups=1, state=10, conv=4, eps=1e-5)
NEMOTRON = replace(GRANITE, groups=2, min_step=0.5)  # most time steps are shorter
SHORT = ShortConv(channels=DIM, conv=3)


def renamed(stored: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """The weights of modules with other names in the released layer."""
    return {f"{ours}.weight": stored[f"{theirs}.weight"] for ours, theirs in names.items()}


def delta_weights(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    shared = renamed(stored, {"conv": "conv1d", "norm": "norm", "o": "out_proj"})
    shared |= {name: stored[name] for name in ("A_log", "dt_bias")}
    if "in_proj_qkv.weight" in stored:
        names = {"qkv": "qkv", "gate": "z", "beta": "b", "decay": "a"}
        return shared | renamed(stored, {ours: f"in_proj_{theirs}" for ours, theirs in names.items()})
    # For each key head: its query, key, values and gates; its beta and decay.
    share = DELTA.value_heads // DELTA.key_heads
    widths = [DELTA.key_dim, DELTA.key_dim, share * DELTA.value_dim, share * DELTA.value_dim]
    packed = rearrange(stored["in_proj_qkvz.weight"], "(g rows) dim -> g rows dim", g=DELTA.key_heads)
    q, k, v, gate = (part.flatten(0, 1) for part in packed.split(widths, dim=1))
    beta, decay = rearrange(stored["in_proj_ba.weight"], "(g two r) dim -> two (g r) dim", g=DELTA.key_heads, two=2)
    own = {"qkv": torch.cat([q, k, v]), "gate": gate, "beta": beta, "decay": decay}
    return shared | {f"{name}.weight": weight for name, weight in own.items()}


def kimi_weights(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "beta": "b_proj", "norm": "o_norm", "o": "o_proj"}
    names |= {"decay.down": "forget_gate.f_a_proj", "decay.up": "forget_gate.f_b_proj"}
    names |= {"gate.down": "g_a_proj", "gate.up": "g_b_proj"}
    convs = zip(("q", "k", "v"), stored["conv1d.weight"].chunk(3), strict=True)
    return {
        **renamed(stored, names),
        **{f"{name}_conv.weight": part for name, part in convs},
        "A_log": stored["forget_gate.A_log"].flatten(),
        "dt_bias": stored["forget_gate.dt_bias"],
    }


def mamba_weights(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = {"in_proj": "input", "out_proj": "o", "conv1d": "conv"}
    return {".".join(names.get(part, part) for part in name.split(".")): value for name, value in stored.items()}


@dataclass(frozen=True)
class Released:
    """A layer of the released implementation: its model_type and class, and the config for `spec`."""

    spec: Any
    kind: str
    layer: str
    weights: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    fields: Mapping[str, Any]

    def config(self) -> Any:
        from transformers import AutoConfig

        return AutoConfig.for_model(self.kind, hidden_size=DIM, **self.fields)

    def build(self) -> nn.Module:
        """The layer in float64, every parameter randomised."""
        name = self.kind.removesuffix("_text")
        module = import_module(f"transformers.models.{name}.modeling_{name}")
        with in_float64():
            layer: nn.Module = getattr(module, self.layer)(self.config(), layer_idx=0)
            randomise(layer, seed=0)
        return layer.eval()

    def built(self, spec: Mixer | None = None) -> nn.Module:
        """The zoo's module with the same weights, all of them."""
        module = (spec or self.spec).build(DIM)
        module.load_state_dict(self.weights(self.build().state_dict()))
        return module


DELTA_FIELDS = {
    "num_hidden_layers": 1,
    "layer_types": ["linear_attention"],
    "linear_num_key_heads": DELTA.key_heads,
    "linear_num_value_heads": DELTA.value_heads,
    "linear_key_head_dim": DELTA.key_dim,
    "linear_value_head_dim": DELTA.value_dim,
    "linear_conv_kernel_dim": DELTA.conv,
    "rms_norm_eps": DELTA.norm.eps,
}
KIMI_FIELDS = {
    "num_hidden_layers": 1,
    "layer_types": ["linear_attention"],
    "linear_num_heads": KIMI.heads,
    "linear_head_dim": KIMI.head_dim,
    "linear_conv_kernel_dim": KIMI.conv,
    "rms_norm_eps": KIMI.norm.eps,
}
GRANITE_FIELDS = {
    "num_hidden_layers": 1,
    "layer_types": ["linear_attention"],
    "mamba_n_heads": GRANITE.heads,
    "mamba_d_head": GRANITE.head_dim,
    "mamba_n_groups": GRANITE.groups,
    "mamba_d_state": GRANITE.state,
    "mamba_d_conv": GRANITE.conv,
    "mamba_expand": 2,
    "rms_norm_eps": GRANITE.eps,
}
NEMOTRON_FIELDS = {
    "layers_block_type": ["linear_attention"],
    "mamba_num_heads": NEMOTRON.heads,
    "mamba_head_dim": NEMOTRON.head_dim,
    "n_groups": NEMOTRON.groups,
    "ssm_state_size": NEMOTRON.state,
    "conv_kernel": NEMOTRON.conv,
    "time_step_min": NEMOTRON.min_step,
    "layer_norm_epsilon": NEMOTRON.eps,
}
SHORT_FIELDS = {"num_hidden_layers": 1, "layer_types": ["conv"], "conv_L_cache": SHORT.conv, "conv_bias": False}


def short_weights(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return renamed(stored, {"input": "in_proj", "conv": "conv", "o": "out_proj"})


RELEASED = {
    "qwen3-next": Released(DELTA, "qwen3_next", "Qwen3NextGatedDeltaNet", delta_weights, DELTA_FIELDS),
    "qwen3.5": Released(DELTA, "qwen3_5_text", "Qwen3_5GatedDeltaNet", delta_weights, DELTA_FIELDS),
    "kimi-linear": Released(KIMI, "kimi_linear", "KimiLinearDeltaAttention", kimi_weights, KIMI_FIELDS),
    "granite4": Released(GRANITE, "granitemoehybrid", "GraniteMoeHybridMambaLayer", mamba_weights, GRANITE_FIELDS),
    "nemotron3": Released(NEMOTRON, "nemotron_h", "NemotronHMamba2Mixer", mamba_weights, NEMOTRON_FIELDS),
    "lfm2": Released(SHORT, "lfm2", "Lfm2ShortConv", short_weights, SHORT_FIELDS),
}
over_released = pytest.mark.parametrize("name", RELEASED)


def unclamped(spec: Any) -> Any:
    """The spec without a least time step, which passes of single tokens do not have either."""
    return replace(spec, min_step=None) if isinstance(spec, Mamba2) else spec


def hidden_states(batch: int = 2, tokens: int = TOKENS, seed: int = 1) -> Tensor:
    return torch.randn(batch, tokens, DIM, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def run(module: nn.Module, spec: Mixer, x: Tensor, pieces: Sequence[int] | None = None) -> Tensor:
    """Without a cache, or in `pieces` over one."""
    if pieces is None:
        cache = NoCache(spec.cache_spec())
        return module(x, prepare_forward(0, x.shape[1], spec.tables(), [cache], dtype=x.dtype), cache)
    cache, outs, past = Cache([spec.cache_spec()], len(x), x.shape[1], x.dtype, x.device).layers[0], [], 0
    for piece in x.split(list(pieces), dim=1):
        ctx = prepare_forward(past, piece.shape[1], spec.tables(), [cache], dtype=x.dtype)
        outs.append(module(piece, ctx, cache))
        past += piece.shape[1]
    return torch.cat(outs, dim=1)


@torch.no_grad()
def run_reference(layer: nn.Module, config: Any, x: Tensor) -> Tensor:
    from transformers import DynamicCache

    cache = DynamicCache(config=config)
    return torch.cat([layer(piece, cache) for piece in x.split(list(PIECES), dim=1)], dim=1)


@torch.no_grad()
@over_released
def test_it_is_the_released_layer(name: str) -> None:
    """Whole and in pieces. In a narrower dtype it is as near to float64 as the released layer in that dtype."""
    released = RELEASED[name]
    layer, module, spec, config = released.build(), released.built(), released.spec, released.config()
    x = hidden_states()
    with in_float64():
        assert_equal(run(module, spec, x), layer(x))
        assert_equal(run(module, spec, x, PIECES), run_reference(layer, config, x))
    for dtype in (torch.float32, torch.bfloat16):
        narrow, other = deepcopy(module).to(dtype), deepcopy(layer).to(dtype)
        exact = deepcopy(narrow).double()
        xs = [hidden_states(seed=seed).to(dtype) for seed in (1, 2, 3)]
        assert_as_near(
            [run(narrow, spec, x, PIECES) for x in xs],
            [run_reference(other, config, x) for x in xs],
            [run(exact, spec, x.double(), PIECES) for x in xs],
        )


@over_released
def test_pieces_give_the_same_and_no_token_sees_a_later_one(name: str) -> None:
    spec = unclamped(RELEASED[name].spec)
    module, x = RELEASED[name].built(spec), hidden_states()
    whole = run(module, spec, x)
    assert_equal(run(module, spec, x, PIECES), whole)
    assert_equal(run(module, spec, x, [1] * TOKENS), whole)
    assert_equal(run(module, spec, x[:, :100]), whole[:, :100])


@over_released
def test_costs_are_those_of_the_module_and_every_parameter_has_a_gradient(name: str) -> None:
    """The cache is as large after any number of tokens."""
    spec = unclamped(RELEASED[name].spec)
    module, parts = RELEASED[name].built(spec), spec.param_breakdown(DIM)
    assert sum(parts.values()) == sum(weight.numel() for weight in module.parameters())
    norms = sum(weight.numel() for name, weight in module.named_parameters() if name.startswith("norm"))
    assert parts.get("norm", 0) == norms
    for new in (1, 2, 64, TOKENS):
        with FlopCounterMode(display=False) as counter:
            run(module, spec, hidden_states(tokens=new))
        assert counter.get_total_flops() == 2 * spec.flops(DIM, 0, new, causal=False)
        assert spec.flops(DIM, 0, new) == new * spec.flops(DIM, 7, 1)
    cache = Cache([spec.cache_spec()], 2, TOKENS, torch.bfloat16, torch.device("cpu"))
    assert cache.nbytes == 2 * spec.cache_spec().state_bytes(2) == 2 * spec.cache_spec().nbytes(10**6, 2)
    without = NoCache(spec.cache_spec())
    module(hidden_states(), prepare_forward(0, TOKENS, spec.tables(), [without]), without).square().mean().backward()
    for parameter, weight in module.named_parameters():
        assert weight.grad is not None, parameter
        assert weight.grad.isfinite().all(), parameter
        assert weight.grad.abs().max() > 0, parameter


def test_the_shortest_time_step_is_one_of_prefill_alone() -> None:
    free, released = unclamped(NEMOTRON), RELEASED["nemotron3"]
    x, module, other = hidden_states(), released.built(), released.built(free)
    assert differs(run(module, NEMOTRON, x), run(other, free, x))
    singles = [1] * x.shape[1]
    assert torch.equal(run(module, NEMOTRON, x, singles), run(other, free, x, singles))


def test_a_short_convolution_sees_the_last_few_tokens_alone() -> None:
    module, x = RELEASED["lfm2"].built(), hidden_states()
    changed = x.clone()
    changed[:, 10] += 1.0
    moved = (run(module, SHORT, changed) != run(module, SHORT, x)).any(-1).any(0)
    assert moved.nonzero().flatten().tolist() == [10, 11, 12]


IMPOSSIBLE: dict[str, Callable[[], Mixer]] = {
    "key_heads=4 must divide value_heads=6": lambda: replace(DELTA, key_heads=4),
    "GatedDeltaNet: conv=1 must be at least 2 tokens": lambda: replace(DELTA, conv=1),
    "KDA: conv=1 must be at least 2 tokens": lambda: replace(KIMI, conv=1),
    "groups=4 must divide heads=6": lambda: replace(GRANITE, groups=4),
    "Mamba2: conv=1 must be at least 2 tokens": lambda: replace(GRANITE, conv=1),
    "ShortConv: conv=1 must be at least 2 tokens": lambda: replace(SHORT, conv=1),
}
DESCRIBED = {
    DELTA: "Gated DeltaNet, 6 heads of 10 on 2 key heads of 8, convolution over 4",
    KIMI: "KDA, 3 heads of 8, convolution over 4",
    GRANITE: "Mamba-2, 6 heads of 16, state 10, convolution over 4",
    NEMOTRON: "Mamba-2, 6 heads of 16, state 10, 2 groups, convolution over 4, time steps of at least 0.5",
    SHORT: "short convolution of 48 channels over 3",
}


def test_shapes_are_checked_and_described() -> None:
    for message, make in IMPOSSIBLE.items():
        with pytest.raises(SpecError, match=message):
            make()
    assert {spec: spec.describe() for spec in DESCRIBED} == DESCRIBED
