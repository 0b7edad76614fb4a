"""Builds a model and checks it. Its parameters and its cache must have the sizes that the formulas give. Decoding with
the cache must give the same logits as one forward pass."""

from math import inf
from time import perf_counter
from typing import Any

import torch

from zoo.catalog import allocate, build
from zoo.core.devices import free_memory
from zoo.core.float32 import BOUND, largest_difference
from zoo.errors import NotAvailable
from zoo.model.decoder import Decoder
from zoo.model.module import Model
from zoo.swaps.tiny import MIN_STEP
from zoo.units import dtype_name, format_bytes, format_count

TOKENS_PAST_WINDOW, PREFILL_CHUNKS, DECODE_STEPS = 50, 3, 16  # the chunks are not multiples of a window
MAX_WINDOW_TOKENS = 4096  # the check does not fill longer windows, to stay fast
Facts = dict[str, Any]


def check_build(spec: Decoder, device: torch.device, dtype: torch.dtype, seed: int) -> tuple[Model, Facts]:
    """Builds the model and counts its parameters, also by the spec's formula. Call `require_free_memory` first."""
    start = perf_counter()
    model = build(spec, device=device, dtype=dtype, seed=seed)
    seconds = perf_counter() - start
    counts = {"parameters": sum(each.numel() for each in model.parameters()), "formula": spec.params()}
    return model, {"device": str(device), "dtype": dtype_name(dtype), "seconds": seconds} | counts


@torch.no_grad()
def check_decoding(model: Model, dtype: torch.dtype, seed: int) -> Facts:
    """Runs the model on `tokens` random tokens in two ways: in one forward pass, and through a cache. The cache is
    filled by a prefill in `chunks`, and then by `steps` single tokens.

    Both ways run in the model's dtype. If memory allows, they run again in float64 with the same weights, where a
    difference cannot be due to rounding. `largest_difference` is the largest difference of the logits, relative to the
    largest logit, in the dtype `compared_in`. If the check cannot judge this difference, `bound` is None and
    `not_judged` gives the reason. Cache sizes are in bytes: `cache_bytes` as allocated, `cache_formula` by the formula.
    """
    spec, device, total = model.spec, model.embed.weight.device, tokens_needed(model.spec)
    chunks = tuple(len(part) for part in torch.arange(total - DECODE_STEPS).chunk(PREFILL_CHUNKS))
    tokens = torch.randint(spec.vocab, (1, total), generator=torch.Generator().manual_seed(seed)).to(device)
    passes = tokens.split([*chunks, *[1] * DECODE_STEPS], 1)
    logits, cache = model(tokens), model.new_cache(1, total)
    decoded = torch.cat([model(part, cache) for part in passes], dim=1)
    difference, compared_in, not_judged = largest_difference(decoded, logits), dtype, _obstacle(spec, device)
    if not_judged is None and difference < inf:  # not if it is infinite or NaN
        exact, compared_in = allocate(spec, device, torch.float64), torch.float64
        exact.load_state_dict(model.state_dict())
        exact_cache = exact.new_cache(1, total)
        difference = largest_difference(torch.cat([exact(part, exact_cache) for part in passes], dim=1), exact(tokens))
    # Nemotron 3's prefill clamps the time step from below; its single-token decode does not.
    if any((getattr(node, "min_step", None) or 0) > MIN_STEP for node in spec.walk()):
        not_judged = "this model computes a single token differently from several tokens"
    return {
        "seed": seed,
        "tokens": total,
        "chunks": chunks,
        "steps": DECODE_STEPS,
        "largest_logit": logits.abs().max().item(),
        "largest_difference": difference,
        "compared_in": dtype_name(compared_in),
        "bound": None if not_judged else BOUND,
        "cache_bytes": cache.nbytes,
        "cache_formula": spec.kv_bytes(total, dtype=dtype),
        "not_judged": not_judged,
    }


def _obstacle(spec: Decoder, device: torch.device) -> str | None:
    """Returns the reason why the model cannot run in float64, or None if it can."""
    if device.type == "mps":
        return "this device has no float64"
    free, needed = free_memory(device), _bytes_needed(spec, torch.float64)
    if free is None or needed <= free:
        return None
    return f"float64 needs {format_bytes(needed)} more, and {format_bytes(free)} is free"


def failures(built: Facts, decoded: Facts | None) -> list[str]:
    """Returns a line for each check that failed."""
    found = []
    if built["parameters"] != built["formula"]:
        found.append(f"{built['parameters']:,} parameters were built, and the formula says {built['formula']:,}")
    if decoded is None:
        return found
    nbytes, formula, difference = (decoded[key] for key in ("cache_bytes", "cache_formula", "largest_difference"))
    if nbytes != formula:
        found.append(f"the cache has {nbytes:,} bytes, and the formula says {formula:,}")
    if decoded["bound"] is not None and not difference <= decoded["bound"]:  # NaN fails too
        by = f"by {difference:.1e} of the largest logit, above {decoded['bound']:.0e}"
        found.append(f"decoding over the cache differs from the forward {by}")
    return found


def tokens_needed(spec: Decoder) -> int:
    """Returns the number of tokens for the check of decoding, larger than the widest window (up to a limit)."""
    widest = max(layer.cache_spec().reach.limit or 0 for layer in spec.layers)
    return min(widest, MAX_WINDOW_TOKENS) + TOKENS_PAST_WINDOW


def require_free_memory(spec: Decoder, device: torch.device, dtype: torch.dtype) -> None:
    """Raises NotAvailable unless weights, cache and logits of the checks fit in the device's free memory."""
    free, needed = free_memory(device), _bytes_needed(spec, dtype)
    if free is None or needed <= free:
        return
    weights = spec.params() * dtype.itemsize
    halve = " --dtype bfloat16 halves it," if dtype.itemsize > 2 else ""
    raise NotAvailable(
        f"{format_count(spec.params())} parameters in {dtype_name(dtype)} need {format_bytes(needed)} on {device} "
        f"(weights {format_bytes(weights)}, cache and logits {format_bytes(needed - weights)}), and "
        f"{format_bytes(free)} is free;{halve} --tiny builds the same composition at toy widths"
    )


def _bytes_needed(spec: Decoder, dtype: torch.dtype) -> int:
    """Returns the bytes of the weights, a cache, and the logits of both ways to run the model."""
    tokens = tokens_needed(spec)
    rest = spec.kv_bytes(tokens, dtype=dtype) + 2 * tokens * spec.vocab * dtype.itemsize
    return spec.params() * dtype.itemsize + rest
