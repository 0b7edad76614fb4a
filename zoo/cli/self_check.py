"""Building a model and trying it out: does what was allocated have the size that the formulas say, and does decoding
over the cache compute what one forward computes?"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from zoo.catalog import build
from zoo.core.devices import free_memory
from zoo.errors import NotAvailable
from zoo.model.decoder import Decoder, Model
from zoo.units import dtype_name, format_bytes, format_count

PAST_WINDOW, CHUNKS, STEPS = 50, 3, 16  # chunks that are no multiple of a window
LONGEST = 4096  # a window beyond this is not filled: the run is a check, not a benchmark
# Of the largest logit, and of 1 at least. Fresh tiny models stay below a third of these.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Built:
    """A module as it was allocated: its parameters counted one by one, and what the spec's formula says."""

    device: str
    dtype: str
    seconds: float
    parameters: int
    formula: int


@dataclass(frozen=True)
class Decoded:
    """One forward of `tokens` tokens, against the same over a cache: `chunks` of them at a time, then `steps` single
    ones. `bound` is None where the difference is not judged."""

    seed: int
    tokens: int
    chunks: tuple[int, ...]
    steps: int
    largest_logit: float
    largest_difference: float
    bound: float | None
    cache_bytes: int
    cache_formula: int


def allocate(spec: Decoder, device: torch.device, dtype: torch.dtype, seed: int) -> tuple[Model, Built]:
    """Build the model, and count what was built. See `check_memory` first."""
    start = perf_counter()
    model = build(spec, device=device, dtype=dtype, seed=seed)
    seconds = perf_counter() - start
    parameters = sum(each.numel() for each in model.parameters())
    return model, Built(str(device), dtype_name(dtype), seconds, parameters, spec.params())


@torch.no_grad()
def decode(model: Model, dtype: torch.dtype, seed: int) -> Decoded:
    """Run the model on random tokens, once whole and once over a cache."""
    spec, device = model.spec, model.embed.weight.device
    total = tokens_needed(spec)
    prefill = total - STEPS
    chunks = tuple(len(part) for part in torch.arange(prefill).chunk(CHUNKS))
    tokens = torch.randint(spec.vocab, (1, total), generator=torch.Generator().manual_seed(seed)).to(device)
    whole, cache = model(tokens), model.new_cache(1, total)
    difference = torch.zeros((), device=device)
    parts = [*chunks, *[1] * STEPS]
    for part, same in zip(tokens.split(parts, 1), whole.split(parts, 1), strict=True):
        difference = torch.maximum(difference, _apart(model(part, cache), same))
    largest = whole.abs().max().item()
    return Decoded(
        seed=seed,
        tokens=total,
        chunks=chunks,
        steps=STEPS,
        largest_logit=largest,
        largest_difference=difference.item(),
        bound=TOLERANCE[dtype] * max(1.0, largest) if _is_judged(spec, dtype) else None,
        cache_bytes=cache.nbytes,
        cache_formula=spec.kv_bytes(total, dtype=dtype),
    )


def failures(built: Built, decoded: Decoded | None) -> list[str]:
    """What should be equal and is not, a line each."""
    found = []
    if built.parameters != built.formula:
        found.append(f"{built.parameters:,} parameters were built, and the formula says {built.formula:,}")
    if decoded is None:
        return found
    if decoded.cache_bytes != decoded.cache_formula:
        found.append(f"the cache has {decoded.cache_bytes:,} bytes, and the formula says {decoded.cache_formula:,}")
    # "not <=": a NaN is a failure.
    if decoded.bound is not None and not decoded.largest_difference <= decoded.bound:
        found.append(
            f"decoding over the cache differs from the forward by {decoded.largest_difference:.1e}, "
            f"above {decoded.bound:.1e}"
        )
    return found


def tokens_needed(spec: Decoder) -> int:
    """A few dozen tokens beyond every window."""
    return min(max(layer.cache_spec().window or 0 for layer in spec.layers), LONGEST) + PAST_WINDOW


def check_memory(spec: Decoder, device: torch.device, dtype: torch.dtype) -> None:
    """Raise NotAvailable unless weights, cache and logits of a trial fit the memory that is free."""
    free = free_memory(device)
    tokens = tokens_needed(spec)
    weights = spec.params() * dtype.itemsize
    rest = spec.kv_bytes(tokens, dtype=dtype) + 2 * tokens * spec.vocab * dtype.itemsize
    if free is None or weights + rest <= free:
        return
    halve = " --dtype bfloat16 halves it," if dtype.itemsize > 2 else ""
    raise NotAvailable(
        f"{format_count(spec.params())} parameters in {dtype_name(dtype)} need {format_bytes(weights + rest)} on "
        f"{device} (weights {format_bytes(weights)}, cache and logits {format_bytes(rest)}), and {format_bytes(free)} "
        f"is free;{halve} "
        "--tiny builds the same composition at toy widths"
    )


def _apart(a: Tensor, b: Tensor) -> Tensor:
    return (a.float() - b.float()).abs().max()


def _is_judged(spec: Decoder, dtype: torch.dtype) -> bool:
    """In a coarse dtype a router's near tie may go either way, and then the rest of the sequence differs rightly."""
    return dtype.itemsize >= 4 or not any(node.role == "router" for node in spec.walk())
