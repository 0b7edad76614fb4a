"""The zoo: open large language models, compared side by side and built from one registry of blocks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from zoo.cli import interrupt as interrupt  # before torch, so that Ctrl-C is answered while torch is imported

# isort: split
from zoo import kernel_choice
from zoo.blocks import GELU as GELU
from zoo.blocks import GLU as GLU
from zoo.blocks import GQA as GQA
from zoo.blocks import KDA as KDA
from zoo.blocks import MLA as MLA
from zoo.blocks import MLP as MLP
from zoo.blocks import Activation as Activation
from zoo.blocks import Branch as Branch
from zoo.blocks import ClampedSwiGLU as ClampedSwiGLU
from zoo.blocks import CompressedAttention as CompressedAttention
from zoo.blocks import Compressor as Compressor
from zoo.blocks import DenseAndMoE as DenseAndMoE
from zoo.blocks import EntryIndexer as EntryIndexer
from zoo.blocks import Gated as Gated
from zoo.blocks import GatedDeltaNet as GatedDeltaNet
from zoo.blocks import GeGLU as GeGLU
from zoo.blocks import GroupedSigmoidTopK as GroupedSigmoidTopK
from zoo.blocks import GroupedSoftmaxTopK as GroupedSoftmaxTopK
from zoo.blocks import GroupedTopK as GroupedTopK
from zoo.blocks import HashTopK as HashTopK
from zoo.blocks import HyperBranch as HyperBranch
from zoo.blocks import Indexer as Indexer
from zoo.blocks import InputScaledTopK as InputScaledTopK
from zoo.blocks import KVSource as KVSource
from zoo.blocks import Layer as Layer
from zoo.blocks import LayerInput as LayerInput
from zoo.blocks import LayerNorm as LayerNorm
from zoo.blocks import LayerScale as LayerScale
from zoo.blocks import LearnedPositions as LearnedPositions
from zoo.blocks import LinearScaling as LinearScaling
from zoo.blocks import Llama3Scaling as Llama3Scaling
from zoo.blocks import LogTemperature as LogTemperature
from zoo.blocks import LongRoPE as LongRoPE
from zoo.blocks import Mamba2 as Mamba2
from zoo.blocks import MoE as MoE
from zoo.blocks import NoPE as NoPE
from zoo.blocks import Norm as Norm
from zoo.blocks import NormedSoftmaxTopK as NormedSoftmaxTopK
from zoo.blocks import PerLayerInputs as PerLayerInputs
from zoo.blocks import Position as Position
from zoo.blocks import PostNorm as PostNorm
from zoo.blocks import ProportionalRoPE as ProportionalRoPE
from zoo.blocks import ReLUSquared as ReLUSquared
from zoo.blocks import RMSNorm as RMSNorm
from zoo.blocks import RoPE as RoPE
from zoo.blocks import Router as Router
from zoo.blocks import Scaling as Scaling
from zoo.blocks import SharedKV as SharedKV
from zoo.blocks import ShortConv as ShortConv
from zoo.blocks import SoftmaxTopK as SoftmaxTopK
from zoo.blocks import SparseMLA as SparseMLA
from zoo.blocks import SqrtSoftplusTopK as SqrtSoftplusTopK
from zoo.blocks import Streams as Streams
from zoo.blocks import SwiGLU as SwiGLU
from zoo.blocks import Temperature as Temperature
from zoo.blocks import YarnScaling as YarnScaling
from zoo.blocks import hyper as hyper
from zoo.blocks import longrope_gain as longrope_gain
from zoo.blocks import olmo as olmo
from zoo.blocks import post as post
from zoo.blocks import pre as pre
from zoo.blocks import sandwich as sandwich
from zoo.blocks import yarn_gain as yarn_gain
from zoo.catalog import build as build
from zoo.catalog import from_hf as from_hf
from zoo.catalog import names as names
from zoo.catalog import spec as spec
from zoo.catalog import to_hf as to_hf
from zoo.costs import CacheSpec as CacheSpec
from zoo.errors import ZooError as ZooError
from zoo.model.decoder import Decoder as Decoder
from zoo.model.decoder import swap_layers as swap_layers
from zoo.oracle import costs_of as costs_of
from zoo.registry import Spec as Spec
from zoo.registry import swap as swap
from zoo.swaps.grammar import apply_swap as apply_swap

if TYPE_CHECKING:
    from weights.loading import load as load

__version__ = "0.1.0"  # pyproject.toml reads it here

kernels = kernel_choice  # the file zoo/kernels.py is a command


def __getattr__(name: str) -> Any:
    """Returns the class of this name from `Spec.kinds`, which includes blocks from files added later, or
    `weights.load`. `weights` is imported only at this access, because the package zoo does not need it."""
    if name in Spec.kinds:
        return Spec.kinds[name]
    if name == "load":
        return import_module("weights").load
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *Spec.kinds, "load"})
