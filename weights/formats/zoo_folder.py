"""Reads a folder in the zoo's own layout: spec.json, and safetensors under the names of the modules.

The layout can hold any model, even one that no published config describes. A checkpoint of a run
(zoo.training.checkpoints) has the same tensors, with the spec in its state.json.
"""

from collections.abc import Iterable
from functools import cached_property
from math import prod
from pathlib import Path

import torch

from weights.formats.safetensors_folder import SafetensorsFolder
from weights.formats.untrusted import CONFIG_LIMIT, member, read_json
from weights.matching import READABLE_DTYPES, stored_tensors
from zoo import catalog
from zoo.errors import MalformedError, UsageError
from zoo.hf.checkpoint_layout import LayerPrefix, Rename, Rules
from zoo.model.decoder import Decoder
from zoo.spec_files import from_state, spec_from
from zoo.training.checkpoints import STATE

SPEC, LAYERS, EMBEDDING = "spec.json", "layers.", "embed.weight"


class ZooFolder(SafetensorsFolder):
    """The tensors of a folder whose `file` is a spec.json or a run's state.json. Each parameter is stored under its own
    name, in its own dtype."""

    def __init__(self, file: Path) -> None:
        content = read_json(member(file.parent, file.name), CONFIG_LIMIT)
        self._file = file
        self._spec = spec_from(from_state(content) if file.name == STATE else content, str(file))
        super().__init__(file.parent)
        params, held = self._spec.params(), sum(prod(tensor.shape) for tensor in self.held)
        if params > held:  # before a module is built
            raise MalformedError(f"{file} describes {params} parameters; the files hold at most {held}")

    @property
    def folder(self) -> Path:
        """The folder of the tokenizer. For a checkpoint, it is the folder of the run."""
        return self.path.parent.parent if self._file.name == STATE else self.path

    @cached_property
    def rules(self) -> Rules:
        return own_layout(self._spec)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the embedding."""
        embedding = self.tensors.get(EMBEDDING)
        return embedding.dtype if embedding and embedding.dtype in READABLE_DTYPES else torch.float32

    @property
    def embedding(self) -> str:
        return EMBEDDING

    def spec(self, ignore_fields: Iterable[str] = ()) -> Decoder:
        if fields := list(ignore_fields):
            raise UsageError(f"{self._file} has no fields to ignore, got {', '.join(fields)}")
        return self._spec


def own_layout(spec: Decoder) -> Rules:
    """Returns the rules of the zoo's own layout: every parameter of the spec's module is stored under its own name."""
    names = stored_tensors(catalog.allocate(spec, "meta"))
    local = (name.split(".", 2)[2] if name.startswith(LAYERS) else name for name in names)
    return (LayerPrefix(LAYERS), *(Rename(name, name) for name in dict.fromkeys(local)))
