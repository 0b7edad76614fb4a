"""Kernels are decided by timed turns, once per machine, when a model is made, and never where measuring is unsafe."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, cycle
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import weights
import zoo
from tests.models import has_compiler, tokens_of
from tests.ranks import in_ranks
from zoo.core import inductor, kernels
from zoo.core.collectives import Group
from zoo.core.kernels import OPERATIONS, PLAIN, Decision, KernelChoices
from zoo.core.ops import attention, linear
from zoo.kernel_choice import deciding, kept

LINEAR, DECODE, ATTENTION = (
    (operation, torch.float32) for operation in ("linear prefill", "linear decode", "attention prefill")
)
EAGER = [LINEAR, DECODE, ATTENTION]
COMPILED = [("compiled decode linear", torch.float32), ("compiled decode attention", torch.float32)]
Seconds = dict[str, list[list[float]]]  # by kernel, of each shape, turn by turn


class Clock:
    """A clock that only calls advance, each by its own seconds. `asked`: the decisions that were measured. `chosen`:
    the kernels during each call."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[Decision] = []
        self.chosen: list[dict[str, str]] = []
        self.seconds: Seconds = {}

    def __call__(self) -> float:
        return self.now

    def trial(self, decision: Decision) -> Callable[[], list[Callable[[], None]]]:
        """Returns calls that take the seconds of the chosen kernel, after a first call that does not count."""
        self.asked.append(decision)

        def run(turns: dict[str, Iterator[float]]) -> None:
            self.chosen.append(kernels.choices())
            self.now += next(turns[kernels.active().kernel(*decision)])

        def calls() -> list[Callable[[], None]]:
            names = PLAIN, OPERATIONS[decision[0]].kernel
            shapes = zip(*(self.seconds[kernel] for kernel in names), strict=True)
            turns = (
                {name: chain([7.0], cycle(times)) for name, times in zip(names, shape, strict=True)} for shape in shapes
            )
            return [partial(run, each) for each in turns]

        return calls


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Clock]:
    """A machine that has decided nothing yet, on which the other kernel of every operation is faster."""
    made = Clock()
    made.seconds = {operation.kernel: [[1e-3]] for operation in OPERATIONS.values()} | {PLAIN: [[2e-3]]}
    monkeypatch.setattr(deciding, "perf_counter", made)
    monkeypatch.setattr(deciding, "trial", made.trial)
    monkeypatch.setattr(deciding, "MIN_PARAMETERS", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with kernels.using(None):
        yield made


@pytest.mark.parametrize(
    ("plain", "other", "chosen"),
    [
        ([[1e-3]], [[0.5e-3]], "onednn"),
        ([[1e-3]], [[0.94e-3]], "onednn"),
        ([[1e-3]], [[0.96e-3]], PLAIN),  # not clearly faster
        ([[1e-3]], [[2e-3]], PLAIN),
        ([[1e-3]], [[9e-3, 0.5e-3, 9e-3]], "onednn"),  # others disturb most turns
        ([[9e-3, 1e-3, 9e-3]], [[0.96e-3]], PLAIN),
        ([[1e-3], [1e-3]], [[0.5e-3], [1.7e-3]], "onednn"),  # over both shapes
        ([[1e-3], [1e-3]], [[0.5e-3], [1.9e-3]], PLAIN),
        ([[1e-6], [1e-3]], [[0.5e-6], [1.7e-3]], "onednn"),  # whatever their sizes
    ],
)
def test_another_kernel_is_chosen_only_if_it_is_clearly_faster(
    clock: Clock, plain: list[list[float]], other: list[list[float]], chosen: str
) -> None:
    clock.seconds = {PLAIN: plain, "onednn": other}
    zoo.kernels.decide([LINEAR])
    assert kernels.choices() == {"linear prefill, float32": chosen}
    assert kernels.is_replaced(*LINEAR) is (chosen != PLAIN)


def test_a_decision_ends_when_its_time_is_spent(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """It also ends when three turns of each kernel took about its fastest time; otherwise a warning says so."""
    warm_up = 2 * 7.0
    zoo.kernels.decide([LINEAR])
    assert clock.now == pytest.approx(warm_up + 3 * 3e-3)
    assert caplog.text == ""
    clock.now, clock.seconds[PLAIN] = 0.0, [[1e-3 * 1.2**turn for turn in range(40)]]
    zoo.kernels.decide([DECODE])
    assert deciding.MAX_SECONDS <= clock.now - warm_up <= 1.2 * deciding.MAX_SECONDS
    assert "linear decode, float32 was decided while the machine was busy" in caplog.text
    clock.now, clock.seconds[PLAIN] = 0.0, [[3.0 * 1.2**turn for turn in range(40)]]
    zoo.kernels.decide([ATTENTION])
    assert clock.now == pytest.approx(warm_up + 3.0 * (1 + 1.2 + 1.44) + 3e-3), "three turns, however long they take"


def test_decisions_share_the_time(clock: Clock) -> None:
    """All of them together take two seconds, beside their warm-up."""
    clock.seconds[PLAIN] = [[1e-3 * 1.2**turn for turn in range(40)]]
    wanted = deciding.decisions([torch.float32, torch.bfloat16, torch.float16], compiled=True)
    zoo.kernels.decide(wanted)
    assert clock.asked == wanted
    assert clock.now - len(wanted) * 2 * 7.0 < 2


def test_a_machine_decides_once(clock: Clock) -> None:
    zoo.kernels.decide([LINEAR, DECODE])
    zoo.kernels.decide([LINEAR])
    assert clock.asked == [LINEAR, DECODE]
    kernels.use(None)  # another process
    zoo.kernels.decide([LINEAR, ATTENTION])
    assert clock.asked == [LINEAR, DECODE, ATTENTION]
    assert kernels.choices().keys() == {"linear prefill, float32", "attention prefill, float32"}, "what was asked for"
    clock.seconds = {PLAIN: [[1e-3]], "onednn": [[1e-3]], "blocks": [[1e-3]]}
    zoo.kernels.decide([LINEAR], again=True)
    assert kernels.choices() == {"linear prefill, float32": PLAIN, "attention prefill, float32": "blocks"}
    assert kept.read() == {LINEAR: PLAIN, DECODE: "onednn", ATTENTION: "blocks"}


def test_a_kernel_is_measured_beside_those_that_are_decided(clock: Clock) -> None:
    """The trial of attention uses the decided kernel of linear maps."""
    zoo.kernels.decide([LINEAR, ATTENTION])
    linear = {"linear prefill, float32": "onednn"}
    assert clock.chosen[-2:] == [linear | {"attention prefill, float32": kernel} for kernel in (PLAIN, "blocks")]


@pytest.mark.parametrize("setting", [PLAIN, {"linear prefill": "onednn"}])
def test_kernels_that_are_set_are_not_decided(clock: Clock, setting: kernels.Request) -> None:
    with kernels.using(setting):
        before = kernels.choices()
        zoo.kernels.decide(EAGER)
        zoo.build("qwen3", tiny=True).compile()
        assert kernels.choices() == before
    assert clock.asked == []


@pytest.mark.filterwarnings("ignore:TF32")  # of a GPU that is not asked for
def test_nothing_is_decided_in_a_thread_or_where_calls_are_intercepted(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept decisions are not read either, or results would depend on what ran before. The next call decides."""
    kept.write({LINEAR: "onednn"})
    decide = partial(zoo.kernels.decide, [LINEAR])
    thread = threading.Thread(target=decide)
    thread.start()
    thread.join()
    for mode in (
        FlopCounterMode(display=False),
        torch.device("meta"),
        torch._subclasses.FakeTensorMode(),
        torch.overrides.TorchFunctionMode(),
        torch.backends.mkldnn.flags(enabled=False),
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        with mode:
            decide()
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        decide()
    assert kernels.choices() == {}
    decide()
    assert kernels.choices() == {"linear prefill, float32": "onednn"}
    assert clock.asked == []


def test_a_model_decides_before_its_first_pass(
    clock: Clock, saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Building or loading a model decides, for its dtype."""
    makers: list[Callable[[torch.dtype], object]] = [
        lambda dtype: zoo.build("qwen3", tiny=True, dtype=dtype),
        lambda dtype: weights.load(saved("qwen3-0.6b"), dtype=dtype),
    ]
    for make in makers:
        for dtype, expected in ((torch.float32, EAGER), (torch.bfloat16, [("attention prefill", torch.bfloat16)])):
            kernels.use(None)
            make(dtype)
            assert kernels.choices() == {kernels.name(each): OPERATIONS[each[0]].kernel for each in expected}
    kernels.use(None)
    zoo.build("qwen3", tiny=True, device="meta")
    assert kernels.choices() == {}
    monkeypatch.setattr(deciding, "MIN_PARAMETERS", zoo.spec("qwen3", tiny=True).params() + 1)
    zoo.build("qwen3", tiny=True)
    assert kernels.choices() == {}, "too small"


@pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")
def test_a_compiled_model_decides_on_compiled_kernels(clock: Clock) -> None:
    model = zoo.build("qwen3", tiny=True)
    model.compile(backend="eager", options=None)
    assert clock.asked == [*EAGER, *COMPILED]


@torch.no_grad()
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.filterwarnings("ignore"))])
def test_a_pass_decides_nothing(clock: Clock, compiled: bool) -> None:
    model = zoo.build("qwen3", tiny=True)
    if compiled:
        model.compile(backend="eager", options=None)
    kernels.use(None)
    clock.asked.clear()
    cache = model.new_cache(1, 80)
    for length in (70, 1, 1, 3):
        model(tokens_of(model.spec, 1, length), cache)
    assert (kernels.choices(), clock.asked) == ({}, [])


def decided_in_group(device: torch.device, folder: str) -> dict[str, str]:
    """Returns the kernels of a rank. Rank 0 finds the other kernels faster, rank 1 would find the plain ones faster."""
    with pytest.MonkeyPatch.context() as patch:
        rank = torch.distributed.get_rank()
        patch.setenv("XDG_CACHE_HOME", folder + str(rank))
        patch.setattr(deciding, "measure", lambda each, chosen, seconds: PLAIN if rank else OPERATIONS[each[0]].kernel)
        kernels.use(None)
        group = Group.of(torch.distributed.group.WORLD)
        model = zoo.build("qwen3", tiny=True)
        assert kernels.choices() == {}, "too small, were it not divided"
        zoo.kernels.decide_for(model, group)
        return kernels.choices()


def test_rank_0_decides_for_all_ranks(tmp_path: Path) -> None:
    first, second = in_ranks(2, decided_in_group, str(tmp_path))
    assert first == second == {kernels.name(each): OPERATIONS[each[0]].kernel for each in EAGER}


# Trials call the operations themselves, which run the kernel that is chosen.

CALLED = {  # by the other kernel alone
    "linear prefill": (linear, "ONEDNN"),
    "linear decode": (linear, "ONEDNN"),
    "attention prefill": (attention, "_prefill_in_blocks"),
}
EVERY = deciding.decisions((torch.float32, torch.bfloat16, torch.float16), compiled=True)
CALLING = [each for each in EVERY if each[0] in CALLED]
COMPILING = [each for each in EVERY if each[0] not in CALLED]


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deciding, "READ_BYTES", 2**20)
    monkeypatch.setattr(deciding, "MATRIX_BYTES", 2**18)
    monkeypatch.setattr(deciding, "KEYS", 32)
    monkeypatch.setattr(deciding, "TOKENS", 64)
    monkeypatch.setattr(attention, "MIN_MULTIPLY_ADDS", 0)


def chosen(decision: Decision, kernel: str) -> KernelChoices:
    return KernelChoices({decision: kernel}, is_set=True)


def results(calls: list[deciding.Call]) -> list[Tensor]:
    outs = [call() for call in calls]
    return [each for out in outs for each in ([out] if isinstance(out, Tensor) else out)]


@torch.no_grad()
@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("decision", CALLING, ids=kernels.name)
def test_both_kernels_are_called_and_compute_the_same(decision: Decision, monkeypatch: pytest.MonkeyPatch) -> None:
    """All elements are equal, and so are the keys: attention returns the value of each."""
    module, function = CALLED[decision[0]]
    if getattr(module, function) is None:
        pytest.skip("this build of torch does not ask MKL")
    other = Mock(wraps=getattr(module, function))
    monkeypatch.setattr(module, function, other)
    calls = deciding.trial(decision)()
    assert len(calls) >= 2
    with kernels.using(chosen(decision, PLAIN)):
        plain = results(calls)
    assert not other.called
    with kernels.using(chosen(decision, OPERATIONS[decision[0]].kernel)):
        replaced = results(calls)
    assert other.call_count == len(calls)
    require_near(plain, replaced)


@torch.no_grad()
@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("decision", COMPILING, ids=kernels.name)
def test_compiled_code_has_the_kernel_that_is_chosen(decision: Decision, monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph holds all shapes."""
    found: list[tuple[list[str], list[Tensor]]] = []
    for kernel in (PLAIN, OPERATIONS[decision[0]].kernel):
        graphs: list[str] = []

        def keep(graph: torch.fx.GraphModule, inputs: list[Tensor], graphs: list[str] = graphs) -> torch.fx.GraphModule:
            graphs.append(graph.print_readable(print_output=False))
            return graph

        compiled = partial(torch.compile, fullgraph=True, isolate_recompiles=True, backend=keep)
        monkeypatch.setattr(inductor, "compiled", compiled)
        with kernels.using(chosen(decision, kernel)):
            found.append((graphs, results(deciding.trial(decision)())))
    (plain, expected), (replaced, got) = found
    assert len(plain) == len(replaced) == 1
    assert "as_strided" not in plain[0]
    assert replaced[0].count("as_strided") >= 2, "a reduction reads materialized rows"
    require_near(expected, got)


def require_near(plain: list[Tensor], replaced: list[Tensor]) -> None:
    near = 1e-5 if plain[0].dtype == torch.float32 else 1e-2
    for one, other in zip(plain, replaced, strict=True):
        torch.testing.assert_close(other, one, rtol=near, atol=near)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch warns of its own code while it compiles
@pytest.mark.parametrize("decision", [*CALLING, *COMPILING], ids=kernels.name)
def test_a_decision_is_measured_at_full_size(decision: Decision) -> None:
    """Which kernel is faster depends on the machine."""
    assert 0.01 < deciding.time_ratio(decision, {}, 0.1) < 100
