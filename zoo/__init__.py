"""The zoo: open large language models, side by side, from one registry of blocks."""

from typing import Any

from zoo.cli import interrupt  # noqa: F401 - before torch, so that Ctrl-C is answered while that is imported

# isort: split
from zoo.blocks import (
    GLU,
    GQA,
    MLA,
    Branch,
    ClampedSwiGLU,
    GeGLU,
    GroupedSigmoidTopK,
    Layer,
    LinearScaling,
    Llama3Scaling,
    MoE,
    NoPE,
    PostNorm,
    RMSNorm,
    RoPE,
    SoftmaxTopK,
    SwiGLU,
    YarnScaling,
    olmo,
    post,
    pre,
    sandwich,
)
from zoo.catalog import build, from_hf, names, spec
from zoo.core import kernels
from zoo.costs import CacheSpec
from zoo.errors import ZooError
from zoo.hf.export import to_hf
from zoo.model.decoder import Decoder, swap_layers
from zoo.registry import Spec, swap

__all__ = [
    "GLU",
    "GQA",
    "MLA",
    "Branch",
    "CacheSpec",
    "ClampedSwiGLU",
    "Decoder",
    "GeGLU",
    "GroupedSigmoidTopK",
    "Layer",
    "LinearScaling",
    "Llama3Scaling",
    "MoE",
    "NoPE",
    "PostNorm",
    "RMSNorm",
    "RoPE",
    "SoftmaxTopK",
    "Spec",
    "SwiGLU",
    "YarnScaling",
    "ZooError",
    "build",
    "from_hf",
    "kernels",
    "names",
    "olmo",
    "post",
    "pre",
    "sandwich",
    "spec",
    "swap",
    "swap_layers",
    "to_hf",
]


def __getattr__(name: str) -> Any:
    """Blocks added in files of their own: every kind in the registry is here by name."""
    if name in Spec.kinds:
        return Spec.kinds[name]
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")
