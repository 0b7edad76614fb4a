"""Rows for other programs: the costs of a forward pass by kind of layer and by operation."""

from collections.abc import Sequence

from benchmarks.analytic.kv import InferenceConfig
from benchmarks.analytic.models import NamedSpec, about
from zoo.cli.tables import Row
from zoo.errors import UsageError

PAST = 4095  # tokens


def oracle_rows(model: NamedSpec, past: int | None, new: int, config: InferenceConfig, by: Sequence[str]) -> list[Row]:
    """Returns one row for each value of the keys `by`, "layer", "op" or both; without keys, one row with the total.

    The rows add up to the FLOPs, bytes and traffic that the other verbs print for the same pass. `past` None: 4,095
    tokens, or as many as the model's context allows. Raises UsageError for a pass beyond the model's context.
    """
    context = model.spec.context
    if past is None:
        past = PAST if context is None else min(PAST, max(context - new, 0))
    if context is not None and past + new > context:
        raise UsageError(f"--past {past} and --new {new} are beyond {model.label}'s context of {context} tokens")
    config = config.of(model)
    head = {"table": "oracle", **about(model), "past": past, "new": new, **config.describe()}
    head |= {"weights_dtype": config.weights.name}
    return [head | row for row in config.costs(model.spec, past, new).by(*by)]
