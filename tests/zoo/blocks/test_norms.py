"""RMSNorm against its formula, and its roundings against each released model's own order of operations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo import RMSNorm

DIM = 64
ROUNDINGS = {
    "Llama": RMSNorm(1e-5),
    "OLMo 2, gpt-oss": RMSNorm(1e-5, scale_in_fp32=True),
    "Gemma": RMSNorm(1e-5, unit_offset=True, scale_in_fp32=True),
    "Llama with an offset": RMSNorm(1e-5, unit_offset=True),
}


def built(spec: RMSNorm, dtype: torch.dtype) -> tuple[torch.nn.Module, Tensor, Tensor]:
    """A norm with random weights, a row of inputs of many magnitudes, and the weights."""
    module = spec.build(DIM).to(dtype)
    with torch.no_grad():
        module.weight.copy_(torch.randn(DIM))
    x = (torch.randn(3, 7, DIM) * torch.logspace(-3, 3, 7)[:, None]).to(dtype)
    return module, x, module.weight.detach()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("which", ROUNDINGS)
def test_each_rounds_where_its_model_does(which: str, dtype: torch.dtype) -> None:
    """Results are equal to the last bit: normalised in float32, then rounded before the multiplication by the weight
    (Llama) or after it (all others)."""
    spec = ROUNDINGS[which]
    module, x, w = built(spec, dtype)
    wide = x.float()
    normed = F.rms_norm(wide, (DIM,), eps=spec.eps)
    expected = {
        "Llama": lambda: w * normed.to(dtype),
        "OLMo 2, gpt-oss": lambda: (w * normed).to(dtype),
        "Gemma": lambda: (normed * (1.0 + w.float())).to(dtype),
        "Llama with an offset": lambda: (normed.to(dtype) * (1.0 + w.float())).to(dtype),
    }[which]()
    out = module(x)
    assert out.dtype == dtype
    assert torch.equal(out, expected)


def test_the_two_roundings_differ() -> None:
    """Otherwise the test above would prove nothing."""
    (one, x, w), (other, *_) = (
        built(ROUNDINGS["Llama"], torch.bfloat16),
        built(ROUNDINGS["OLMo 2, gpt-oss"], torch.bfloat16),
    )
    with torch.no_grad():
        other.weight.copy_(w)
    assert not torch.equal(one(x), other(x))
