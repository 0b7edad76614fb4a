"""Loads a released model. One error names every parameter without a tensor, and every unknown tensor."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from weights.formats.hf_folder import CONFIG, HFFolder
from weights.formats.zoo_folder import ZooFolder
from weights.matching import (
    HEAD,
    Part,
    Source,
    StoredTensor,
    TensorMapping,
    check_fit,
    listed,
    match,
    skipped,
    stored_tensors,
)
from weights.sources import described_by, locate
from weights.tokenizer import Text
from zoo import catalog
from zoo.arguments import find_dtype
from zoo.blocks.layer import Layer
from zoo.core.collectives import Group
from zoo.core.devices import find_device
from zoo.errors import MalformedError, UsageError, require_package
from zoo.hf.checkpoint_layout import Rename, Stacked
from zoo.kernel_choice import decide_for
from zoo.model.decoder import Decoder
from zoo.model.initialisation import fill_buffers
from zoo.model.module import Model
from zoo.model.parallel import Ranks, allocate_part
from zoo.sharding import Cut, Cuts, FirstRankOnly, cut_of

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

READER_THREADS = 2  # more threads were no faster on two cores
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LazyTensors(Sequence[Tensor]):
    """The named tensors of a source. Each access reads a tensor; none is cached."""

    source: Source
    names: Sequence[str]
    device: str | torch.device
    dtype: torch.dtype
    part: Part | None = None  # the part of each tensor to read (None: all of it)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: Any) -> Any:
        if self.part is not None:
            return self.source.get_part(self.names[i], self.part, self.device, self.dtype)
        return self.source.get(self.names[i], self.device, self.dtype)


@dataclass(frozen=True)
class Shards:
    """A rank's shard of a model. `whole` is the spec of the whole model, `parameters` are its meta tensors by name."""

    whole: Decoder
    group: Group
    parameters: Mapping[str, Tensor]

    @cached_property
    def _cuts(self) -> Cuts:
        return self.whole.cuts()

    def layer(self, mapping: TensorMapping) -> Layer | None:
        """Returns the rank's shard of the spec of a mapping's layer, or None outside the layers. With this shard, a
        rule fills the rank's part of the parameters."""
        return None if mapping.layer is None else mapping.layer.shard(self.group.rank)

    def names(self, mapping: TensorMapping) -> tuple[str, ...]:
        """Returns the names of the stored tensors that the rank reads. If experts are stored one by one and ranks hold
        whole experts, the rank reads only its own experts."""
        cut = cut_of(mapping.module_names[0], self._cuts)
        if isinstance(mapping.rule, Stacked) and isinstance(cut, Cut) and cut.dim == 0:
            (held,) = cut.slices(len(mapping.checkpoint_names), self.group.rank)
            return mapping.checkpoint_names[held.start : held.stop]
        return mapping.checkpoint_names

    def is_absent(self, parameter: str) -> bool:
        """Whether this rank holds zeros for a parameter, because only the first rank holds its values."""
        return self.group.rank.index > 0 and isinstance(cut_of(parameter, self._cuts), FirstRankOnly)

    def part(self, mapping: TensorMapping, stored: Mapping[str, StoredTensor]) -> Part | None:
        """Returns the part that the rank reads of each stored tensor in a mapping; None means the whole tensor."""
        shape = stored[mapping.checkpoint_names[0]].shape
        dims, rows = set(), []
        for i, name in enumerate(mapping.module_names):
            cut = cut_of(name, self._cuts)
            if not isinstance(cut, Cut) or (isinstance(mapping.rule, Stacked) and cut.dim == 0):
                return None
            size = self.parameters[name].shape[cut.dim]
            own = torch.cat([torch.arange(each.start, each.stop) for each in cut.slices(size, self.group.rank)])
            dim, found = mapping.rule.stored_rows(i, cut.dim, own, shape, mapping.layer)
            dims.add(dim)
            rows.append(found)
        (dim,) = dims
        return Part(dim, tuple(_ranges(torch.cat(rows).unique())))


def _ranges(rows: Tensor) -> Iterator[range]:
    """Yields the ranges of consecutive numbers in sorted row numbers."""
    ends = (rows.diff() != 1).nonzero().flatten() + 1
    for run in rows.tensor_split(ends.tolist()):
        yield range(int(run[0]), int(run[-1]) + 1)


@dataclass(frozen=True)
class MatchedModel:
    """A model on the meta device, and mappings from the stored tensors, which fit the model and are not read yet."""

    source: Source
    model: Model
    mappings: list[TensorMapping]
    skipped: dict[str, list[str]]  # description -> names of skipped tensors
    shards: Shards | None = None  # this rank's shard (None: one process)

    def read(self, mappings: Sequence[TensorMapping], device: str | torch.device = "cpu") -> dict[str, Tensor]:
        """Returns the parameters that these mappings fill, by name, in the shapes and dtypes of the model.

        Tensors that are only renamed come first, since they may share the file's pages. Memory for all other parameters
        is then allocated before any is filled: temporary tensors would otherwise leave gaps between them. Several
        threads read stacked experts, whose tensors are too small for torch's own threads. (On two cores, this converts
        to float32 in a third less time.) Other tensors are read one by one, to hold only one at a time in memory.
        """
        wanted, absent = stored_tensors(self.model), dict[str, Tensor]()
        if self.shards is not None:
            names = [name for name in wanted if self.shards.is_absent(name)]
            absent = {name: torch.zeros(wanted[name].shape, dtype=wanted[name].dtype, device=device) for name in names}
            mappings = [mapping for mapping in mappings if mapping.module_names[0] not in absent]

        def tensors(mapping: TensorMapping) -> LazyTensors:
            part = None if self.shards is None else self.shards.part(mapping, self.source.tensors)
            dtype = wanted[mapping.module_names[0]].dtype
            names = mapping.checkpoint_names if self.shards is None else self.shards.names(mapping)
            return LazyTensors(self.source, names, device, dtype, part)

        renamed = [mapping for mapping in mappings if isinstance(mapping.rule, Rename)]
        others = [mapping for mapping in mappings if not isinstance(mapping.rule, Rename)]
        filled = {mapping.module_names[0]: tensors(mapping)[0] for mapping in renamed}
        for name in (name for mapping in others for name in mapping.module_names):
            # Not torch.empty_like, which imports sympy for a meta tensor: a third of a second and 20 MB.
            filled[name] = torch.empty(wanted[name].shape, dtype=wanted[name].dtype, device=device)

        def fill(mapping: TensorMapping) -> None:
            layer = mapping.layer if self.shards is None else self.shards.layer(mapping)
            mapping.rule.fill([filled[name] for name in mapping.module_names], tensors(mapping), layer)

        with ThreadPoolExecutor(READER_THREADS) as readers:
            list(readers.map(fill, (mapping for mapping in others if isinstance(mapping.rule, Stacked))))
        for mapping in others:
            if not isinstance(mapping.rule, Stacked):
                fill(mapping)
        return filled | absent


def load(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    offline: bool = False,
    ignore_fields: Iterable[str] = (),
    check_finite: bool = False,
    mesh: DeviceMesh | None = None,
    whole_experts: bool = False,
) -> Model:
    """Loads a released model and returns it in eval mode. `source` is a hub id ("org/name" or "org/name@revision"), a
    preset's name, a folder in Hugging Face layout, or a .gguf file.

    `dtype` "auto" is the source's dtype: the one in config.json, or float32 for a quantised .gguf. On the CPU and in
    that dtype, parameters that the file holds unchanged share its pages. Packed tensors are unpacked one at a time.
    Even under `torch.inference_mode()`, parameters are normal tensors.

    `mesh` is a DeviceMesh of torch with one dimension, or with a dimension named "tp". With it, the model is this
    rank's shard in tensor parallelism, and only this rank's slices are read. All ranks must load and run the model
    together. They divide the width of each expert or, with `whole_experts`, the number of experts (expert parallelism).

    `ignore_fields` are fields of the config to ignore at your own risk. `check_finite` reads every tensor first, and
    refuses NaN and infinity. `offline` uses the download cache only.

    Raises NotAvailable for a missing file, package or device, UsageError for an unknown device or dtype, and one
    MalformedError that names everything that does not fit.
    """
    device = find_device(device)
    opened = open_source(source, revision, offline)
    generation = opened.generation  # before the tensors are read: it may be malformed
    group = None if mesh is None else Group.of(mesh.get_group("tp" if mesh.mesh_dim_names else None))
    model = fill(opened.spec(ignore_fields), opened, device, dtype, check_finite, Ranks(group, whole_experts))
    model.generation, model.text = generation, Text(opened.text_path)
    return model


def open_source(source: str | Path, revision: str | None = None, offline: bool = False) -> Source:
    """Returns the source with this name, downloaded if necessary. Raises NotAvailable if there is no such source."""
    path = locate(source, revision, offline)
    if path.is_dir():
        file = described_by(path)
        return HFFolder(file.parent) if file.name == CONFIG else ZooFolder(file)
    if path.is_file() and path.suffix == ".gguf":
        require_package("gguf", "gguf")
        from weights.formats.gguf_file import GGUFFile  # here, since it needs an optional package

        return GGUFFile(path)
    raise UsageError(f"{path} is neither a folder with safetensors files nor a .gguf file")


def fill(
    spec: Decoder,
    source: Source,
    device: str | torch.device,
    dtype: str | torch.dtype,
    check_finite: bool = False,
    ranks: Ranks = Ranks(),
) -> Model:
    """Returns a model of this spec, or this rank's shard of it, with the source's weights. Names, shapes and dtypes are
    checked before the first tensor is read.

    The caller's autograd mode and default device have no effect. Even under `torch.inference_mode()` the parameters are
    normal tensors, so that the model can be trained and compiled later. (Reader threads do not inherit inference mode
    and could not write into its tensors.) Temporary tensors are on the CPU.
    """
    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
        matched = match_model(spec, source, resolve_dtype(dtype, source), ranks)
        if spec.tied and HEAD in source.tensors:
            _check_tied_head(source)
        if check_finite:
            _check_finite(source, [name for mapping in matched.mappings for name in mapping.checkpoint_names])
        # Not strict: a checkpoint lacks the buffers that are computed.
        matched.model.load_state_dict(matched.read(matched.mappings, device), strict=False, assign=True)
        fill_buffers(matched.model, device)
        _check_stored(source, matched.model)
        for what, names in matched.skipped.items():
            log.info("left alone: %d tensor%s, %s", len(names), "s" * (len(names) > 1), what)
    decide_for(matched.model, ranks.group)
    return matched.model


def match_model(spec: Decoder, source: Source, dtype: torch.dtype, ranks: Ranks = Ranks()) -> MatchedModel:
    """Matches the source's tensors with a model of this spec, or with this rank's shard of it, on the meta device.
    Raises MalformedError naming everything that does not fit, SpecError if the ranks cannot divide the model."""
    model = catalog.allocate(spec, "meta", dtype)
    parameters = stored_tensors(model)
    mappings = match(spec, parameters, source.rules, source.tensors)
    skip = skipped(spec, source.rules, source.tensors)
    check_fit(source, mappings, parameters, {name for names in skip.values() for name in names})
    if ranks.group is None:
        return MatchedModel(source, model, mappings, skip)
    spec = ranks.divided(spec)
    shards = Shards(spec, ranks.group, parameters)
    return MatchedModel(source, allocate_part(spec, ranks.group, dtype), mappings, skip, shards)


def resolve_dtype(dtype: str | torch.dtype, source: Source) -> torch.dtype:
    """Returns the dtype with this name; "auto" means the source's dtype."""
    return source.dtype if dtype == "auto" else find_dtype(dtype, computing=True)


def _check_tied_head(source: Source) -> None:
    """Checks that the stored copy of a tied head equals the embedding bit by bit."""
    head, embed = source.get(HEAD), source.get(source.embedding)
    if head.dtype != embed.dtype or not torch.equal(head.view(torch.uint8), embed.view(torch.uint8)):
        differs = f"{source.tensors[HEAD].name} differs from {source.tensors[source.embedding].name}"
        raise MalformedError(f"{source.path}: the head is tied to the embedding, yet {differs}")


def _check_stored(source: Source, model: Model) -> None:
    """Raises MalformedError if a module reports a mistake in the buffers that were loaded into it."""
    for path, module in model.named_modules():
        if problem := module.stored_problem() if hasattr(module, "stored_problem") else "":
            raise MalformedError(f"{source.path}: {path}.{problem}")


def _check_finite(source: Source, names: Iterable[str]) -> None:
    """Raises one MalformedError naming every tensor that holds a NaN or an infinity."""
    extremes = ((name, torch.aminmax(source.get(name))) for name in names)  # aminmax propagates NaN
    if wrong := [source.tensors[name].name for name, ends in extremes if not all(end.isfinite() for end in ends)]:
        raise MalformedError(f"{source.path}: NaN or infinite numbers in {listed(wrong)}")
