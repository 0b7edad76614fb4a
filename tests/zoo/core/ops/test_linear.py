"""`linear` is F.linear, whichever kernel computes it; reductions equal matrix products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.exact import assert_computes, assert_equal
from zoo.core import kernels
from zoo.core.ops import linear as linear_module
from zoo.core.ops.linear import (
    GEMV_PARTS,
    MAX_GEMV_BATCH,
    Linear,
    dot,
    gemv_reduce,
    is_single_token,
    linear,
    use_gemv,
)

ONEDNN = {"linear prefill": "onednn", "linear decode": "onednn"}
needs_onednn = pytest.mark.skipif(linear_module.ONEDNN is None, reason="this build of torch does not ask MKL")


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Every product that may use oneDNN does. Returns the shapes of those products."""
    used: list[object] = []
    kernel = linear_module.ONEDNN

    def counted(*args: Any) -> Tensor:
        used.append(args[0].shape)
        return kernel(*args)

    if kernel is not None:
        monkeypatch.setattr(linear_module, "ONEDNN", counted)
    with kernels.using(ONEDNN):
        yield used


@needs_onednn
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("turned", [False, True], ids=["", "turned"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(6,), (1, 6), (2, 3, 6), (0, 6)], ids=str)
def test_linear_equals_the_matrix_product(
    onednn: list[object], shape: tuple[int, ...], dtype: torch.dtype, turned: bool, bias: bool
) -> None:
    """This includes column-major matrices, with and without gradients."""

    def inputs() -> tuple[Tensor, Tensor, Tensor | None]:
        return torch.randn(shape), torch.randn(5, 6), torch.randn(5) if bias else None

    def call(x: Tensor, weight: Tensor, given: Tensor | None) -> Tensor:
        return linear(x, weight.T.contiguous().T if turned else weight, given)

    for with_gradients in (False, True):
        with torch.set_grad_enabled(with_gradients):
            assert_computes(call, F.linear, inputs, [dtype])
    assert len(onednn) == 3 * int(dtype == torch.float32 and not turned and 0 not in shape)


@needs_onednn
@torch.no_grad()
def test_onednn_flops_are_counted() -> None:
    with kernels.using(ONEDNN), FlopCounterMode(display=False) as counted:
        linear(torch.randn(2, 3, 6), torch.randn(5, 6))
    assert counted.get_total_flops() == 2 * 2 * 3 * 5 * 6


class Logged(torch.Tensor):
    """A weight with its own linear map, as quantised and sharded weights have."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_function__(func, types, args, kwargs or {})
        return out.as_subclass(Tensor) + 1 if func is F.linear else out


def same(one: Callable[[], Tensor], other: Callable[[], Tensor]) -> None:
    """Asserts that both return the same result or raise the same error."""
    (got, error), (expected, expected_error) = outcome(one), outcome(other)
    assert error == expected_error
    if got is not None and expected is not None:
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)


def outcome(call: Callable[[], Tensor]) -> tuple[Tensor | None, str]:
    """Returns the result, and the error that is raised instead."""
    try:
        return call(), ""
    except (RuntimeError, ValueError, IndexError) as error:
        return None, f"{type(error).__name__}: {error}"


@torch.no_grad()
@pytest.mark.parametrize(
    ("x", "weight", "bias"),
    [
        ((2, 7), (5, 6), None),  # of other widths
        ((2, 6), (5, 6), (4,)),
        ((2, 6), (6,), None),
        ((2, 6), (2, 5, 6), None),
        ((), (5, 6), None),
        ((3, 0), (5, 0), None),
    ],
)
def test_wrong_shapes_raise_torchs_own_errors(
    onednn: list[object], x: tuple[int, ...], weight: tuple[int, ...], bias: tuple[int, ...] | None
) -> None:
    given = [torch.randn(shape) if shape is not None else None for shape in (x, weight, bias)]
    same(lambda: linear(*given), lambda: F.linear(*given))


@torch.no_grad()
@pytest.mark.parametrize("case", ["x", "weight", "bias"])
def test_mixed_dtypes_are_left_to_torch(onednn: list[object], case: str) -> None:
    given = {"x": torch.randn(2, 6), "weight": torch.randn(5, 6), "bias": torch.randn(5)}
    given[case] = given[case].bfloat16()
    same(lambda: linear(*given.values()), lambda: F.linear(*given.values()))
    assert not onednn


@torch.no_grad()
@pytest.mark.parametrize("compiled", [False, True], ids=["", "compiled"])
@pytest.mark.parametrize("tokens", [1, 3])
def test_autocast_is_respected(onednn: list[object], tokens: int, compiled: bool) -> None:
    module, x = Linear(6, 5), torch.randn(1, tokens, 6)
    nn.init.normal_(module.weight)
    nn.init.normal_(module.bias)
    call = torch.compile(module, backend="eager") if compiled else module
    with torch.autocast("cpu", torch.bfloat16):
        out = call(x)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, F.linear(x.bfloat16(), module.weight.bfloat16(), module.bias.bfloat16()))
    assert not onednn
    assert call(x).dtype == torch.float32, "autocast has ended"


@torch.no_grad()
def test_a_tensor_subclass_computes_its_own_linear(onednn: list[object]) -> None:
    weight = torch.randn(5, 6)
    module, x = Linear(6, 5, bias=False), torch.randn(2, 6)
    module.weight = nn.Parameter(weight.as_subclass(Logged))
    assert torch.equal(module(x), F.linear(x, weight) + 1)
    assert not onednn


@torch.no_grad()
def test_a_sharded_weight_computes_as_a_whole_one(onednn: list[object], tmp_path: Path) -> None:
    """The weight is a DTensor on a mesh of one process. It has its own F.linear, which returns a DTensor."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))

        def sharded(x: Tensor, weight: Tensor) -> Tensor:
            module = Linear(6, 5, bias=False)
            module.weight = nn.Parameter(distribute_tensor(weight, mesh, [Shard(0)]))
            out = module(distribute_tensor(x, mesh, [Replicate()]))
            assert isinstance(out, DTensor)
            return out.full_tensor()

        assert_computes(sharded, F.linear, lambda: (torch.randn(2, 6), torch.randn(5, 6)))
    finally:
        torch.distributed.destroy_process_group()
    assert not onednn


@torch.no_grad()
def test_vmap_and_forward_mode_derivatives_work(onednn: list[object]) -> None:

    def tangent(x: Tensor, weight: Tensor) -> Tensor:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(linear(forward_ad.make_dual(x, torch.ones_like(x)), weight)).tangent

    def inputs() -> tuple[Tensor, Tensor]:
        return torch.randn(4, 2, 6), torch.randn(4, 5, 6)

    assert_computes(torch.vmap(linear), lambda x, weight: torch.einsum("nbi,noi->nbo", x, weight), inputs)
    assert_computes(tangent, lambda x, weight: torch.ones_like(x) @ weight.T, lambda: [each[0] for each in inputs()])


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:TF32")  # of a GPU that is not asked for
def test_disabling_onednn_is_respected(onednn: list[object]) -> None:
    with torch.backends.mkldnn.flags(enabled=False):
        linear(torch.randn(2, 6), torch.randn(5, 6))
    assert not onednn


@torch.no_grad()
def test_compiled_linear_equals_f_linear(onednn: list[object]) -> None:
    made = torch.compile(linear, fullgraph=True, backend="aot_eager")
    for shapes in (((2, 3, 6), (5, 6), (5,)), ((2, 3, 6), (5, 6))):
        assert_computes(made, F.linear, lambda shapes=shapes: [torch.randn(shape) for shape in shapes])


@pytest.mark.parametrize("rows", [1, 2, MAX_GEMV_BATCH, 2 * MAX_GEMV_BATCH])
@pytest.mark.parametrize("out", [1, GEMV_PARTS - 1, 7, 3 * GEMV_PARTS])
def test_reductions_equal_the_matrix_product(rows: int, out: int) -> None:
    """Parts may differ in size and be fewer than requested. One matrix per head works, too."""
    x, weight = torch.randn(rows, 5, dtype=torch.float64), torch.randn(out, 5, dtype=torch.float64)
    assert_equal(gemv_reduce(x, weight), x @ weight.T)
    x, weight = torch.randn(rows, 3, 5, dtype=torch.float64), torch.randn(3, out, 5, dtype=torch.float64)
    assert_equal(gemv_reduce(x, weight), torch.einsum("nhi,hoi->nho", x, weight))


def test_narrow_dtypes_are_added_up_in_float32() -> None:
    """4,097 ones: a sum in bfloat16 would stop growing at 256, and 4,097 would be rounded to 4,096."""
    ones = torch.ones(4097, dtype=torch.bfloat16)
    out = dot(ones[None], ones)
    assert out.dtype == torch.float32
    assert out.item() == 4097
    assert gemv_reduce(ones[None], ones[None]).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((1, 1, 4), torch.float32, True),
        ((MAX_GEMV_BATCH, 1, 4), torch.bfloat16, True),
        ((MAX_GEMV_BATCH + 1, 1, 4), torch.bfloat16, False),
        ((MAX_GEMV_BATCH, 1, 4), torch.float32, True),
        ((MAX_GEMV_BATCH + 1, 1, 4), torch.float32, False),
        ((1, 2, 4), torch.float32, False),
        ((1, 4), torch.float32, False),
    ],
)
@pytest.mark.parametrize("kernel", ["gemv", "plain"])
def test_compiled_single_tokens_of_few_sequences_are_reductions(
    kernel: str, shape: tuple[int, ...], dtype: torch.dtype, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are reductions if that kernel is chosen, and only for plain memory of one dtype."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with kernels.using({"compiled decode linear": kernel}):
        x, weight = torch.randn(shape).to(dtype), torch.randn(3, 4).to(dtype)
        assert use_gemv(x, weight) is (expected and kernel == "gemv")
        assert not use_gemv(x, weight.double())
        assert not use_gemv(x, weight.as_subclass(Logged))


def test_on_a_gpu_experts_are_gathered_for_any_number_of_single_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA graph cannot wait for the experts' counts. No product is a reduction on a GPU."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)

    class Elsewhere:
        ndim, shape, dtype, device = 3, (50, 1, 4), torch.bfloat16, torch.device("cuda")

    assert is_single_token(Elsewhere())
    assert not use_gemv(Elsewhere(), torch.randn(3, 4))
