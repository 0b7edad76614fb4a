"""The blocks, one file each: a public frozen spec and the private module that it builds.

The folder is scanned: the specs of a new file enter `Spec.kinds` and the command line without an edit here.
"""

from importlib import import_module
from pkgutil import iter_modules

from zoo.blocks.compressed_attention import *
from zoo.blocks.compressor import *
from zoo.blocks.delta_rule import *
from zoo.blocks.feed_forward import *
from zoo.blocks.gqa import *
from zoo.blocks.hyper_connections import *
from zoo.blocks.layer import *
from zoo.blocks.mamba2 import *
from zoo.blocks.mla import *
from zoo.blocks.moe import *
from zoo.blocks.norms import *
from zoo.blocks.per_layer import *
from zoo.blocks.positions import *
from zoo.blocks.rope_scaling import *
from zoo.blocks.routers import *
from zoo.blocks.short_conv import *
from zoo.blocks.sparse_mla import *

for _info in iter_modules(__path__):
    import_module(f"{__name__}.{_info.name}")
