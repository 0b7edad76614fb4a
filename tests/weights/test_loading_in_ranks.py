"""A rank of tensor parallel reads its own slices of the files and gets its part of the model, bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import weights
import zoo
from tests.exact import BOUND, largest_difference
from tests.presets import screen_by_family
from tests.ranks import in_ranks
from tests.weights.checkpoints import write
from tests.weights.packers import packed_toy
from weights.formats.hf_folder import HFFolder
from weights.loading import fill, open_source
from zoo.blocks.expert_parallel import expert_parallel
from zoo.core.collectives import Group
from zoo.errors import MalformedError, SpecError
from zoo.model.module import Model
from zoo.model.parallel import Ranks, divide, part_of
from zoo.sharding import Rank

Saved = Callable[[str], Path]


def group(index: int, ranks: int) -> Group:
    """A rank of a group without processes, which is enough to read its part."""
    return Group("none", Rank(index, ranks))


def part(folder: Path, index: int, ranks: int, ep: bool = False, dtype: str = "auto") -> Model:
    source = open_source(folder)
    return fill(source.spec(), source, "cpu", dtype, ranks=Ranks(group(index, ranks), ep))


def assert_part(folder: Path, ranks: int, ep: bool = False, dtype: str = "auto") -> None:
    whole = weights.load(folder, dtype=dtype)
    cuts = (expert_parallel(whole.spec) if ep else whole.spec).cuts()
    for index in range(ranks):
        own = part(folder, index, ranks, ep, dtype).state_dict()
        assert own.keys() == whole.state_dict().keys()
        for name, value in whole.state_dict().items():
            assert torch.equal(own[name], part_of(name, value, cuts, group(index, ranks))), (name, index)


@pytest.mark.parametrize("name", screen_by_family(most=1))
def test_a_rank_gets_its_part_of_every_layout(name: str, saved: Saved) -> None:
    spec = weights.load(saved(name)).spec
    ranks = 4 if is_divisible(spec, 4) else 2  # toy forms are small
    assert_part(saved(name), ranks)
    if any(isinstance(part, zoo.MoE) for part in spec.walk()):
        assert_part(saved(name), ranks, ep=True)


def is_divisible(spec: zoo.Decoder, ranks: int) -> bool:
    try:
        spec.shard(Rank(0, ranks))
    except SpecError:
        return False
    return True


class Requested:
    """A folder that counts the elements of the requested tensors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.elements = 0
        for name in ("get", "get_part"):
            monkeypatch.setattr(HFFolder, name, self._counting(getattr(HFFolder, name)))

    def _counting(self, read: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def counted(*args: Any, **kwargs: Any) -> Tensor:
            tensor = read(*args, **kwargs)
            self.elements += tensor.numel()
            return tensor

        return counted


@pytest.mark.parametrize("name", screen_by_family(most=1))
def test_a_rank_asks_for_its_share_alone(name: str, saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rank reads its parameters; the other ranks do not read biases that the first one adds."""
    requested = Requested(monkeypatch)
    for ep in (False, True):
        requested.elements = 0
        first = part(saved(name), 0, 2, ep)
        assert requested.elements == stored_elements(first)
        requested.elements = 0
        second = part(saved(name), 1, 2, ep)
        assert stored_elements(second) - requested.elements == _zeros(second, first)


def stored_elements(model: Model) -> int:
    """The number of elements in the parameters and in the tables of hash routers."""
    return model.spec.params() + sum(table.numel() for table in model.buffers())


def _zeros(model: Model, first: Model) -> int:
    """The number of elements that only the first rank has."""
    pairs = zip(model.parameters(), first.parameters(), strict=True)
    return sum(own.numel() for own, other in pairs if not own.any() and other.any())  # random values are not zero


def fp8_folder(folder: Path) -> Path:
    """DeepSeek-V3 with widths that two ranks can divide into blocks of 128, with one exception."""
    widths = dict(hidden_size=256, intermediate_size=512, moe_intermediate_size=256, qk_nope_head_dim=128)
    widths |= dict(qk_rope_head_dim=64, v_head_dim=128, kv_lora_rank=128, q_lora_rank=128)
    return write(folder, *packed_toy("deepseek-v3-671b", 4, **widths)[:2])


def test_fp8_is_unpacked_after_slicing_where_blocks_stay_whole(tmp_path: Path) -> None:
    folder = fp8_folder(tmp_path / "x")
    assert_part(folder, 2)
    with pytest.raises(
        MalformedError, match=r"rows 64 to 127 along dimension 0 are not whole blocks of 128 that share a scale"
    ):
        part(folder, 1, 4)


def test_mxfp4_is_unpacked_after_slicing_where_blocks_stay_whole(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", *packed_toy("gpt-oss-20b", 2, intermediate_size=128)[:2])
    for ranks in (2, 4):
        assert_part(folder, ranks)
        assert_part(folder, ranks, dtype="bfloat16")
    folder = write(tmp_path / "y", *packed_toy("gpt-oss-20b", 2, intermediate_size=64 + 32)[:2])
    with pytest.raises(MalformedError, match=r"rows 0 to 47 along dimension 2 are not whole blocks of 32"):
        part(folder, 0, 2)


def test_a_model_that_ranks_cannot_divide_is_refused_before_reading(
    saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested = Requested(monkeypatch)
    with pytest.raises(SpecError, match="heads=4 cannot be divided among 3 ranks"):
        part(saved("llama3.2-1b"), 0, 3)
    assert requested.elements == 0


@torch.no_grad()
def loaded(device: torch.device, folder: str) -> float:
    """The difference between the logits of a model that two ranks loaded and those of one process."""
    from torch.distributed.device_mesh import init_device_mesh

    whole = weights.load(folder, dtype=torch.float64)
    tokens = torch.arange(24).view(2, 12)
    own = weights.load(folder, dtype=torch.float64, mesh=init_device_mesh("cpu", (2,), mesh_dim_names=("tp",)))
    assert own.spec.params() < 0.6 * whole.spec.params()
    return largest_difference(own(tokens), whole(tokens))


def test_two_processes_load_a_mesh(saved: Saved) -> None:
    assert max(in_ranks(2, loaded, str(saved("qwen3-0.6b")))) <= BOUND


def test_a_rank_of_one_is_the_whole_model(saved: Saved) -> None:
    whole = weights.load(saved("qwen3-0.6b"))
    assert all(map(torch.equal, divide(whole, group(0, 1)).parameters(), whole.parameters()))
