"""Choosing kernels: by turns that are timed, by a file, by the environment; and never where nothing may be measured."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from zoo import kernels
from zoo.errors import MalformedError, NotAvailable
from zoo.kernels import PLAIN, Kernels, Race

SIZE = ("linear", torch.float32, "rows 1", "weights 1048576", "threads 2")
NAME = "linear, float32, rows 1, weights 1048576, threads 2"


class Clock:
    """Time passes only in what is run: each run says how long it takes."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def race(self, plain: list[float], other: list[float], cold: bool = False) -> Race:
        def runs(seconds: list[float]) -> list[kernels.Run]:
            return [lambda taken=taken: self._pass(taken) for taken in seconds]

        return Race(runs(plain), runs(other), cold)

    def _pass(self, seconds: float) -> None:
        self.now += seconds


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
        ([1e-3, 1e-3, 1e-3], [0.5e-3, 2e-3, 2e-3], PLAIN),  # in a third of the turns
        ([1e-3, 1e-3, 1e-3, 1e-3], [0.5e-3, 0.5e-3, 0.5e-3, 2e-3], "onednn"),  # in three of four
        ([30e-3], [1e-3], PLAIN),  # too few turns fit into the time for a class
    ],
)
def test_another_kernel_is_taken_only_if_it_wins_clearly(
    clock: Clock, plain: list[float], other: list[float], chosen: str
) -> None:
    picked = kernels.active().pick(SIZE, "onednn", lambda: clock.race(plain, other))
    assert picked is (chosen == "onednn")
    assert kernels.choices() == {NAME: chosen}


def test_a_class_is_measured_once(clock: Clock) -> None:
    assert kernels.active().pick(SIZE, "onednn", lambda: clock.race([1e-3], [0.5e-3]))
    assert kernels.active().pick(SIZE, "onednn", lambda: pytest.fail("measured again"))


def test_measuring_ends_when_the_time_of_the_process_is_spent(clock: Clock) -> None:
    counts = [kernels.active().pick((*SIZE, i), "onednn", lambda: clock.race([4e-3], [2e-3])) for i in range(30)]
    assert counts[0] is True
    assert counts[-1] is False
    assert kernels.active().seconds <= kernels.PROCESS_SECONDS + kernels.CLASS_SECONDS + 0.02


def test_nothing_is_measured_in_a_thread_of_the_program_or_where_calls_are_watched(clock: Clock) -> None:
    """And nothing is decided then: the next call may measure."""
    seen: list[bool] = []

    def pick() -> None:
        seen.append(kernels.active().pick(SIZE, "onednn", lambda: clock.race([1e-3], [0.5e-3])))

    thread = threading.Thread(target=pick)
    thread.start()
    thread.join()
    with FlopCounterMode(display=False):
        pick()
    with torch.device("cpu"):  # a mode that sees calls of functions
        pick()
    assert seen == [False, False, False]
    pick()
    assert seen[-1]


def test_what_comes_up_while_tracing_is_settled_afterwards(clock: Clock) -> None:
    active, traced = kernels.active(), ("decode linear", torch.float32, "rows 1", "threads 2")
    assert active.pick_traced(traced, "gemv", lambda: clock.race([1e-3], [2e-3]))
    assert active.settle(), "what was traced is slower: it is compiled anew"
    assert not active.pick_traced(traced, "gemv", lambda: pytest.fail("measured again"))
    assert not active.settle()
    assert active.pick_traced((*traced, "more"), "gemv", lambda: clock.race([2e-3], [1e-3]))
    assert not active.settle()


def test_choices_are_saved_and_set(clock: Clock, tmp_path: Path) -> None:
    kernels.active().pick(SIZE, "onednn", lambda: clock.race([1e-3], [0.5e-3]))
    file = tmp_path / "kernels.json"
    kernels.save(file)
    with kernels.using(file) as again:
        assert again.pick(SIZE, "onednn", lambda: pytest.fail("measured"))
        assert not again.pick((*SIZE, "other"), "onednn", lambda: pytest.fail("measured")), "not named: plain"
        assert not again.is_plain


@pytest.mark.parametrize("setting", [PLAIN, {}, {"linear": PLAIN}])
def test_plain_is_plain(setting: str | dict[str, str]) -> None:
    with kernels.using(setting) as active:
        assert active.is_plain
        assert not active.pick(SIZE, "onednn", lambda: pytest.fail("measured"))


def test_an_operation_can_be_set_whole_and_a_class_apart() -> None:
    with kernels.using({"linear": "onednn", NAME: PLAIN}) as active:
        assert active.pick((*SIZE, "other"), "onednn", lambda: pytest.fail("measured"))
        assert not active.pick(SIZE, "onednn", lambda: pytest.fail("measured"))


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
def test_a_file_that_says_something_else_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "kernels.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(MalformedError, match=message), kernels.using(file):
        pass


def test_a_file_that_is_not_there_is_named() -> None:
    with (
        pytest.raises(NotAvailable, match=r"ZOO_KERNELS=none\.json: neither 'plain' nor a file"),
        kernels.using("none.json"),
    ):
        pass


def test_the_environment_sets_the_choice(tmp_path: Path) -> None:
    file = tmp_path / "kernels.json"
    file.write_text(json.dumps({"schema_version": 1, "kernels": {"linear": "onednn"}}), encoding="utf-8")
    script = "from zoo import kernels; print(kernels.active().said)"
    for setting, said in ((str(file), "{'linear': 'onednn'}"), ("plain", "{}"), ("", "None")):
        done = subprocess.run(
            [sys.executable, "-c", script], env={"ZOO_KERNELS": setting}, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == said


def test_a_wrong_setting_is_one_line_and_an_exit_code() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zoo.build", "qwen3", "--tiny"],
        env={"ZOO_KERNELS": "nowhere.json"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert done.stderr.startswith("error: ZOO_KERNELS=nowhere.json")


def test_every_operation_names_what_may_replace_it() -> None:
    assert Kernels().said is None
    assert all(others and PLAIN not in others for others in kernels.OPERATIONS.values())
