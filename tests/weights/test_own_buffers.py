"""Blocks with their own buffers: a checkpoint holds only declared buffers, and loading computes the others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

import weights
import zoo
from tests.exact import assert_equal
from tests.models import randomised, tokens_of
from weights.loading import fill, open_source
from weights.matching import stored_tensors
from zoo import GLU
from zoo.catalog import allocate
from zoo.model.module import fill_buffers


@dataclass(frozen=True)
class _Buffered(GLU):
    persistent: bool = False

    def build(self, dim: int) -> nn.Module:
        module = super().build(dim)
        module.register_buffer("own", torch.arange(3.0) + dim, persistent=self.persistent)
        return module


@torch.no_grad()
@pytest.mark.parametrize("persistent", [False, True], ids=["not persistent", "persistent"])
def test_a_block_with_a_buffer_of_its_own_is_loaded(persistent: bool, tmp_path: Path) -> None:
    spec = zoo.spec("llama3", tiny=True)
    plain = randomised(spec)
    weights.save(plain.float(), tmp_path)
    buffered = zoo.swap(spec, GLU, lambda glu: _Buffered(**vars(glu), persistent=persistent))
    model = fill(buffered, open_source(tmp_path), "cpu", torch.float64)
    own = dict(model.named_buffers())
    assert len(own) == len(spec.layers)
    assert all(torch.equal(each, torch.arange(3.0) + spec.dim) for each in own.values())
    assert stored_tensors(model).keys() == dict(model.named_parameters()).keys()
    tokens = tokens_of(spec, 1, 9)
    assert_equal(model(tokens), plain.double()(tokens))
    empty = allocate(buffered, "meta")
    empty.load_state_dict(model.state_dict(), assign=True)
    fill_buffers(empty)
    assert not any(each.is_meta for each in empty.buffers())
    assert_equal(empty(tokens), model(tokens))


def test_tables_of_hash_routers_are_declared() -> None:
    model = allocate(zoo.spec("deepseek-v4", tiny=True), "meta")
    tables = [name for name, _ in model.named_buffers()]
    assert tables
    assert set(tables) <= stored_tensors(model).keys()
