"""The zoo: open large language models, side by side, from one registry of blocks."""

from typing import Any

from zoo.cli import interrupt as interrupt  # before torch, so that Ctrl-C is answered while torch is imported

# isort: split
from zoo import kernels as kernels
from zoo.blocks.glu import *
from zoo.blocks.gqa import *
from zoo.blocks.layer import *
from zoo.blocks.mla import *
from zoo.blocks.moe import *
from zoo.blocks.norms import *
from zoo.blocks.positions import *
from zoo.blocks.rope_scaling import *
from zoo.blocks.routers import *
from zoo.catalog import build as build
from zoo.catalog import from_hf as from_hf
from zoo.catalog import names as names
from zoo.catalog import spec as spec
from zoo.catalog import to_hf as to_hf
from zoo.costs import CacheSpec as CacheSpec
from zoo.errors import ZooError as ZooError
from zoo.model.decoder import Decoder as Decoder
from zoo.model.decoder import swap_layers as swap_layers
from zoo.registry import Spec as Spec
from zoo.registry import swap as swap


def __getattr__(name: str) -> Any:
    """Every kind in the registry by name, those of block files added later too."""
    if name in Spec.kinds:
        return Spec.kinds[name]
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")
