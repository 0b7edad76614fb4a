"""A document of measured speeds: the fields that a gallery reads."""

from __future__ import annotations

from typing import Any

from zoo.cli.tables import SCHEMA_VERSION


def speed(model: str, implementation: str, test: str, tokens_per_s: float) -> dict[str, Any]:
    """A row as `python -m benchmarks throughput --json` writes it."""
    return {
        "table": "throughput",
        "model": model,
        "implementation": implementation,
        "tiny": False,
        "mode": "eager",
        "test": test,
        "phase": "prefill" if test.startswith("pp") else "decode",
        "batch": 1,
        "dtype": "bfloat16",
        "device": "cpu",
        "tokens_per_s": tokens_per_s,
        "tokens_per_s_min": tokens_per_s * 0.9,
        "tokens_per_s_max": tokens_per_s * 1.1,
        "ceiling_tokens_per_s": tokens_per_s * 1.5,
    }


MEASURED: dict[str, Any] = {
    "schema_version": SCHEMA_VERSION,
    "machine": {"cpu": "A processor", "platform": "Linux", "torch": "2.13.0", "threads": 1, "python": "3.13"},
    "rows": [
        speed(model, implementation, test, rate)
        for model, rate in (("gemma3-270m", 40.0), ("qwen3-0.6b", 20.0))
        for implementation in ("zoo", "transformers")
        for test in ("pp512 @ d0", "tg128 @ d4096")
    ],
}
