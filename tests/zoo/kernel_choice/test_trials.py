"""Trials call the operations themselves, which run the kernel that is chosen."""

from __future__ import annotations

from functools import partial
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from tests.models import has_compiler
from zoo.core import inductor, kernels
from zoo.core.kernels import OPERATIONS, PLAIN, Decision, KernelChoices
from zoo.core.ops import attention, linear
from zoo.kernel_choice import deciding
from zoo.kernel_choice.deciding import decisions, time_ratio

DTYPES = torch.float32, torch.bfloat16, torch.float16
CALLED = {  # by the other kernel alone
    "linear prefill": (linear, "ONEDNN"),
    "linear decode": (linear, "ONEDNN"),
    "attention prefill": (attention, "_prefill_in_blocks"),
}
EAGER = decisions(DTYPES)
COMPILED = [each for each in decisions(DTYPES, compiled=True) if each not in EAGER]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deciding, "READ_BYTES", 2**20)
    monkeypatch.setattr(deciding, "MATRIX_BYTES", 2**18)
    monkeypatch.setattr(deciding, "KEYS", 32)
    monkeypatch.setattr(deciding, "TOKENS", 64)
    monkeypatch.setattr(attention, "MIN_MULTIPLY_ADDS", 0)


def chosen(decision: Decision, kernel: str) -> KernelChoices:
    return KernelChoices({decision: kernel}, is_set=True)


def name(decision: Decision) -> str:
    return kernels.name(decision)


def results(calls: list[deciding.Call]) -> list[Tensor]:
    outs = [call() for call in calls]
    return [each for out in outs for each in ([out] if isinstance(out, Tensor) else out)]


@torch.no_grad()
@pytest.mark.parametrize("decision", EAGER, ids=name)
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
@pytest.mark.parametrize("decision", COMPILED, ids=name)
def test_compiled_code_has_the_kernel_that_is_chosen(decision: Decision, monkeypatch: pytest.MonkeyPatch) -> None:
    """For all shapes in one graph."""
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
@pytest.mark.parametrize("decision", [*EAGER, *COMPILED], ids=name)
def test_a_decision_is_measured_at_full_size(decision: Decision, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which kernel is faster depends on the machine."""
    monkeypatch.undo()
    assert 0.01 < time_ratio(decision, {}, 0.1) < 100
