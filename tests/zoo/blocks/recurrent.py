"""Running recurrent mixers whole, in pieces and token by token, and what holds for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.exact import assert_as_near, assert_equal, in_float64
from tests.reference import randomise
from zoo.core.cache import Cache, NoCache, prepare_forward
from zoo.registry import Mixer

DIM, TOKENS = 48, 150
PIECES = (70, 1, 64, 1, 1, 13)  # more than a chunk, exactly one, less than one, and single tokens


def reference(kind: type[nn.Module], config: Any) -> nn.Module:
    """A layer of the released implementation in float64, every parameter randomised."""
    with in_float64():
        layer = kind(config, layer_idx=0)
        randomise(layer, seed=0)
    return layer.eval()


@torch.no_grad()
def built(spec: Mixer, weights: dict[str, Tensor]) -> nn.Module:
    """The module with these weights, all of them."""
    module = spec.build(DIM)
    module.load_state_dict(weights)
    return module


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
def run_reference(layer: nn.Module, config: Any, x: Tensor, pieces: Sequence[int]) -> Tensor:
    from transformers import DynamicCache

    cache = DynamicCache(config=config)
    return torch.cat([layer(piece, cache) for piece in x.split(list(pieces), dim=1)], dim=1)


@torch.no_grad()
def check_reference(module: nn.Module, spec: Mixer, layer: nn.Module, config: Any) -> None:
    """Whole and in pieces it computes what the released layer computes."""
    x = hidden_states()
    with in_float64():
        assert_equal(run(module, spec, x), layer(x))
        assert_equal(run(module, spec, x, PIECES), run_reference(layer, config, x, PIECES))


def check_pieces(module: nn.Module, spec: Mixer) -> None:
    """Whole, in pieces and token by token it is the same, and no token sees a later one."""
    x = hidden_states()
    whole = run(module, spec, x)
    assert_equal(run(module, spec, x, PIECES), whole)
    assert_equal(run(module, spec, x, [1] * TOKENS), whole)
    assert_equal(run(module, spec, x[:, :100]), whole[:, :100])


def check_costs(module: nn.Module, spec: Mixer) -> None:
    """Parameters and FLOPs by formula are those of the module; the cache is as large after any number of tokens."""
    parts = spec.param_breakdown(DIM)
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


def check_gradients(module: nn.Module, spec: Mixer) -> None:
    """Every parameter has one, finite and not zero."""
    x, cache = hidden_states(), NoCache(spec.cache_spec())
    ctx = prepare_forward(0, TOKENS, spec.tables(), [cache])
    module(x, ctx, cache).square().mean().backward()
    for name, weight in module.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.abs().max() > 0, name


def check_narrow_dtypes(module: nn.Module, spec: Mixer, layer: nn.Module, config: Any) -> None:
    """A model in a narrower dtype hands out its own, and is as near to float64 as the released layer in that dtype."""
    for dtype in (torch.float32, torch.bfloat16):
        narrow, released = deepcopy(module).to(dtype), deepcopy(layer).to(dtype)
        exact = deepcopy(narrow).double()
        xs = [hidden_states(seed=seed).to(dtype) for seed in (1, 2, 3)]
        assert_as_near(
            [run(narrow, spec, x, PIECES) for x in xs],
            [run_reference(released, config, x, PIECES) for x in xs],
            [run(exact, spec, x.double(), PIECES) for x in xs],
        )
