"""Choosing kernels: by timed turns, by a file, by the environment; and never where nothing may be measured."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from itertools import chain, cycle
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from zoo.core import kernels
from zoo.core.kernels import PLAIN, KernelChoices, Trial
from zoo.errors import MalformedError, NotAvailable

SIZE = ("linear", torch.float32, (1, 1 << 20))
NAME = f"linear, float32, rows 1, weights 1048576, threads {torch.get_num_threads()}"


class Clock:
    """Time advances in runs alone: each says how long it takes."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def trial(self, plain: list[float], other: list[float]) -> Trial:
        """Two calls that take these seconds, turn by turn, after a first call that does not count."""

        def run(seconds: Iterator[float]) -> None:
            self.now += next(seconds)

        return Trial(*(partial(run, chain([0.0], cycle(seconds))) for seconds in (plain, other)))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    made = Clock()
    monkeypatch.setattr(kernels, "perf_counter", made)
    with kernels.using(None):
        yield made


@pytest.mark.parametrize(
    ("plain", "other", "chosen"),
    [
        ([1e-3], [0.5e-3], "onednn"),
        ([1e-3], [0.94e-3], "onednn"),
        ([1e-3], [0.96e-3], PLAIN),  # not clearly faster
        ([1e-3], [2e-3], PLAIN),
        ([1e-3], [0.5e-3, 2e-3, 2e-3], PLAIN),  # in a third of the turns
        ([1e-3], [0.5e-3, 0.5e-3, 2e-3], "onednn"),  # in two thirds
        ([30e-3], [1e-3], PLAIN),  # too few turns fit into the time for a class
    ],
)
def test_another_kernel_is_chosen_only_if_it_is_clearly_faster(
    clock: Clock, plain: list[float], other: list[float], chosen: str
) -> None:
    picked = kernels.active().pick(*SIZE, lambda: clock.trial(plain, other))
    assert picked is (chosen == "onednn")
    assert kernels.choices() == {NAME: chosen}


def test_a_class_is_measured_once(clock: Clock) -> None:
    assert kernels.active().pick(*SIZE, lambda: clock.trial([1e-3], [0.5e-3]))
    assert kernels.active().pick(*SIZE, lambda: pytest.fail("measured again"))


def test_measuring_ends_when_the_time_of_the_process_is_spent(clock: Clock) -> None:
    counts = [kernels.active().pick(*SIZE[:2], (1, i), lambda: clock.trial([4e-3], [2e-3])) for i in range(30)]
    assert counts[0] is True
    assert counts[-1] is False
    assert kernels.active().seconds <= kernels.MAX_PROCESS_SECONDS + kernels.MAX_CLASS_SECONDS + 0.02


def test_nothing_is_measured_in_a_thread_of_the_program_or_where_calls_are_watched(clock: Clock) -> None:
    """And nothing is chosen then: the next call may measure."""
    seen: list[bool] = []

    def pick() -> None:
        seen.append(kernels.active().pick(*SIZE, lambda: clock.trial([1e-3], [0.5e-3])))

    thread = threading.Thread(target=pick)
    thread.start()
    thread.join()
    with FlopCounterMode(display=False):
        pick()
    with torch.device("cpu"):  # a mode that intercepts calls
        pick()
    assert seen == [False, False, False]
    pick()
    assert seen[-1]


def test_classes_that_come_up_while_tracing_are_measured_afterwards(clock: Clock) -> None:
    active, traced = kernels.active(), ("decode linear", torch.float32)
    assert active.pick_traced(*traced, (1,), lambda: clock.trial([1e-3], [2e-3]))
    assert active.measure_pending(), "the traced kernel is slower: recompile"
    assert not active.pick_traced(*traced, (1,), lambda: pytest.fail("measured again"))
    assert not active.measure_pending()
    assert active.pick_traced(*traced, (4,), lambda: clock.trial([40e-3], [30e-3]))
    assert not active.measure_pending(), "compiled code has time for enough turns, however slow"


def test_choices_are_saved_and_set(clock: Clock, tmp_path: Path) -> None:
    kernels.active().pick(*SIZE, lambda: clock.trial([1e-3], [0.5e-3]))
    file = tmp_path / "kernels.json"
    kernels.save(file)
    with kernels.using(file) as again:
        assert again.pick(*SIZE, lambda: pytest.fail("measured"))
        assert not again.pick(*SIZE[:2], (1, 2), lambda: pytest.fail("measured")), "not named: plain"
        assert not again.is_plain


@pytest.mark.parametrize("setting", [PLAIN, {}, {"linear": PLAIN}])
def test_plain_settings_measure_nothing(setting: str | dict[str, str]) -> None:
    with kernels.using(setting) as active:
        assert active.is_plain
        assert not active.pick(*SIZE, lambda: pytest.fail("measured"))


def test_an_operation_and_a_class_of_it_can_be_set() -> None:
    with kernels.using({"linear": "onednn", NAME: PLAIN}) as active:
        assert active.pick(*SIZE[:2], (1, 2), lambda: pytest.fail("measured"))
        assert not active.pick(*SIZE, lambda: pytest.fail("measured"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "schema_version 1"),
        ('{"schema_version": 2, "kernels": {}}', "schema_version 1"),
        ('{"schema_version": 1, "kernels": {"lineer": "onednn"}}', "did you mean linear"),
        ('{"schema_version": 1, "kernels": {"linear": "mkl"}}', "known: onednn, plain"),
    ],
)
def test_a_malformed_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "kernels.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(MalformedError, match=message), kernels.using(file):
        pass


def test_a_missing_file_is_named() -> None:
    with (
        pytest.raises(NotAvailable, match=r"ZOO_KERNELS=none\.json: neither 'plain' nor a file"),
        kernels.using("none.json"),
    ):
        pass


def test_the_environment_sets_the_choice(tmp_path: Path) -> None:
    file = tmp_path / "kernels.json"
    file.write_text(json.dumps({"schema_version": 1, "kernels": {"linear": "onednn"}}), encoding="utf-8")
    script = "from zoo import kernels; print(kernels.active().requested)"
    for setting, requested in ((str(file), "{'linear': 'onednn'}"), ("plain", "{}"), ("", "None")):
        done = subprocess.run(
            [sys.executable, "-c", script], env={"ZOO_KERNELS": setting}, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == requested


def test_a_wrong_setting_is_a_one_line_error_with_an_exit_code() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zoo.build", "qwen3", "--tiny"],
        env={"ZOO_KERNELS": "nowhere.json"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert done.stderr.startswith("error: ZOO_KERNELS=nowhere.json")


def test_every_operation_names_its_other_kernel_and_its_sizes() -> None:
    assert KernelChoices().requested is None
    assert all(operation.kernel != PLAIN and operation.sizes for operation in kernels.OPERATIONS.values())


def test_buckets_are_the_powers_below() -> None:
    assert [kernels.bucket(number) for number in (1, 3, 4, 15, 16, 17, 512)] == [1, 1, 4, 4, 16, 16, 256]
    assert [kernels.bucket(number, 16) for number in (1, 15, 16, 255, 256, 2**21)] == [1, 1, 16, 16, 256, 2**20]
