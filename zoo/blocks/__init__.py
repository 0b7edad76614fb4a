"""The blocks, one file each: a public frozen spec and the private module that it builds.

The folder is scanned: the specs of a new file are in `Spec.kinds`, hence on the command line, without an edit here.
"""

from importlib import import_module
from pkgutil import iter_modules

from zoo.blocks.glu import GLU, Activation, ClampedSwiGLU, GeGLU, SwiGLU
from zoo.blocks.gqa import GQA
from zoo.blocks.layer import Branch, Layer, PostNorm, olmo, post, pre, sandwich
from zoo.blocks.mla import MLA
from zoo.blocks.moe import GroupedSigmoidTopK, MoE, Router, SoftmaxTopK
from zoo.blocks.norms import RMSNorm
from zoo.blocks.positions import LinearScaling, Llama3Scaling, NoPE, Position, RoPE, Scaling, YarnScaling, yarn_gain

__all__ = [
    "GLU",
    "GQA",
    "MLA",
    "Activation",
    "Branch",
    "ClampedSwiGLU",
    "GeGLU",
    "GroupedSigmoidTopK",
    "Layer",
    "LinearScaling",
    "Llama3Scaling",
    "MoE",
    "NoPE",
    "Position",
    "PostNorm",
    "RMSNorm",
    "RoPE",
    "Router",
    "Scaling",
    "SoftmaxTopK",
    "SwiGLU",
    "YarnScaling",
    "olmo",
    "post",
    "pre",
    "sandwich",
    "yarn_gain",
]

for _info in iter_modules(__path__):
    import_module(f"{__name__}.{_info.name}")
