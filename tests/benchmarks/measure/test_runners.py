"""The timed passes are those that the label names, and a repetition computes what the one before it did."""

from __future__ import annotations

import pytest
import torch

import zoo
from benchmarks.measure.runners import FILL_TOKENS, Workload, ZooRunner, random_tokens, task, workloads
from benchmarks.measure.timing import Task
from tests.presets import screen_of_families, split
from zoo.errors import UsageError
from zoo.model.module import Model

CPU = torch.device("cpu")


def forwards(task: Task, model: Model) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Shapes of the tokens that go through the model while a task is prepared, and while it runs."""
    seen: list[tuple[int, ...]] = []
    hook = model.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    run = task.prepare()
    before = len(seen)
    run()
    hook.remove()
    return seen[:before], seen[before:]


def of(work: Workload, model: Model) -> Task:
    return task(("x",), ZooRunner(model), work, random_tokens(work, model.spec.vocab, 0, CPU))


@torch.inference_mode()
def test_prefill_times_one_pass_and_decode_single_tokens_after_the_first() -> None:
    model = zoo.build("llama3", tiny=True)
    assert forwards(of(Workload("prefill", 20, batch=2), model), model) == ([], [(2, 20)])
    assert forwards(of(Workload("decode", 3, batch=2), model), model) == ([(2, 1)], [(2, 1)] * 3)


@torch.inference_mode()
def test_a_depth_is_filled_once_and_in_parts() -> None:
    model = zoo.build("llama3", tiny=True)
    prefill, decode = (of(Workload(phase, 3, FILL_TOKENS + 88), model) for phase in ("prefill", "decode"))  # type: ignore[arg-type]
    filling = [(1, FILL_TOKENS), (1, 88)]
    assert forwards(prefill, model) == (filling, [(1, 3)])
    assert forwards(prefill, model) == ([], [(1, 3)])
    assert forwards(decode, model) == ([*filling, (1, 1)], [(1, 1)] * 3)
    assert forwards(decode, model) == ([(1, 1)], [(1, 1)] * 3)


@torch.inference_mode()
@pytest.mark.parametrize("family", screen_of_families())
@pytest.mark.parametrize("depth", split([0, 7, 40], [40]))  # 40 fills the toy windows
def test_a_restored_cache_gives_the_same_logits(family: str, depth: int) -> None:
    """Equal passes give bitwise equal logits again, also compared with a fresh cache."""
    model = zoo.build(family, tiny=True)
    tokens = torch.randint(model.spec.vocab, (2, depth + 12))
    runner = ZooRunner(model)

    def filled() -> object:
        cache = runner.new_cache(2, depth + 12)
        if depth:
            runner(tokens[:, :depth], cache)
        return cache

    def after(cache: object) -> torch.Tensor:
        parts = tokens[:, depth:].split([9, 1, 1, 1], dim=1)
        return torch.cat([runner(part, cache) for part in parts])  # type: ignore[arg-type, misc]

    again = runner.snapshot(filled())  # type: ignore[arg-type]
    first, second, fresh = after(again()), after(again()), after(filled())
    assert torch.equal(first, second)
    assert torch.equal(first, fresh)


@pytest.mark.parametrize(
    ("work", "label", "passes", "capacity"),
    [
        (Workload("prefill", 512), "pp512", [(0, 512)], 512),
        (Workload("prefill", 5, 4096), "pp5 @ d4096", [(4096, 5)], 4101),
        (Workload("decode", 2), "tg2", [(1, 1), (2, 1)], 3),
        (Workload("decode", 2, 4096), "tg2 @ d4096", [(4097, 1), (4098, 1)], 4099),
        (Workload("train", 256, batch=8), "train 8x256", [(0, 256)], 257),  # the last token is only a target
    ],
)
def test_labels_are_llama_benchs(work: Workload, label: str, passes: list[tuple[int, int]], capacity: int) -> None:
    assert (work.label, work.passes, work.capacity) == (label, passes, capacity)


def test_workloads_are_a_prefill_and_a_decode_at_each_depth() -> None:
    assert [work.label for work in workloads(512, 128, [0, 4096, 0], 1)] == [
        "pp512",
        "tg128",
        "pp512 @ d4096",
        "tg128 @ d4096",
    ]
    assert [work.label for work in workloads(0, 128, [0], 1)] == ["tg128"]
    with pytest.raises(UsageError, match="nothing to measure"):
        workloads(0, 0, [0], 1)


def test_the_same_seed_gives_the_same_tokens() -> None:
    work = Workload("prefill", 50)
    assert torch.equal(random_tokens(work, 512, 1, CPU), random_tokens(work, 512, 1, CPU))
    assert not torch.equal(random_tokens(work, 512, 1, CPU), random_tokens(work, 512, 2, CPU))
