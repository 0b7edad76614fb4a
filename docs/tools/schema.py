"""docs/benchmarks.schema.json: the JSON schema of `python -m benchmarks --json`.

The columns of a table are the keys of a row that the table's code writes; all are required. The kind of a column is its
entry in `COLUMNS`, as "table.column" or else as "column", or else the entry of its ending in `ENDINGS`.
"""

import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from benchmarks.analytic.compare import difference_rows, figure_rows, structure_rows, unknown_rows
from benchmarks.analytic.estimates import bound_rows, ground_rows, stored_rows
from benchmarks.analytic.kv import InferenceConfig, cache_row, crossing_row, fit_row
from benchmarks.analytic.models import NamedSpec, one
from benchmarks.analytic.oracle import oracle_rows
from benchmarks.analytic.params import cost_row, layer_rows, param_row
from benchmarks.analytic.roofline import device, flop_row
from benchmarks.analytic.serving import serve_row
from benchmarks.analytic.weight_forms import FOUR_BIT, PACKED, PLAIN
from benchmarks.commands.blocks import of_model
from benchmarks.commands.table import quantity_row
from benchmarks.learning.comparison import ALL_TASKS
from benchmarks.measure import blocks, loading
from benchmarks.measure.mla import MLAVariants
from benchmarks.measure.runners import BASELINE, ZOO
from benchmarks.measure.sparse import SparseVariants
from benchmarks.measure.throughput_rows import SIGNS
from benchmarks.measure.timing import Samples
from benchmarks.measure.variants import VariantsConfig
from benchmarks.output.report import DOCS, Row, kept, read
from zoo.cli.tables import SCHEMA_VERSION
from zoo.hf.estimate import estimate
from zoo.hf.stored_shapes import StoredShapes

Kind = dict[str, Any]
TITLES = {  # table -> a description of its rows
    "costs": "the main job: one row per model",
    "throughput": "throughput, compare --measure and the main job: one row per model, implementation, mode and test",
    "ceilings": "the limits of this machine: one row per kernel, measured in turns with the models",
    "params": "params: one row per model; the parts add up to `params`",
    "layers": "params: one row per kind of layer of a model; the figures are those of one layer",
    "kv": "kv: one row per model and context",
    "fit": "kv: the longest context that fits on a card, one row per model",
    "crossing": "kv, compare: the contexts at which each of two caches is smaller",
    "flops": "flops: one row per model, context and phase, for all sequences together; the parts add up to `flops`",
    "quantities": "table: one row per model, with the value of each chosen column",
    "structure": "compare: one row per structural difference between `against` and the model, as a sentence",
    "differences": "compare: one row per field of the specs that differs",
    "figures": "compare: one row per cost that differs",
    "serve": "serve: ceilings of a decoding step, one row per model, context, cache dtype and batch",
    "oracle": "oracle: costs of one card in a pass of all sequences, by kind of layer and operation; rows add up",
    "bounds": "params, kv, flops, compare: one row per cost of an estimated model, with its bounds",
    "stored": "params, kv, flops, compare: parameters by group in the headers of an estimated model's files",
    "grounds": "params, kv, flops, compare: one row per thing that an estimate rests on",
    "unknown_fields": "compare: one row per field of an estimated model's config that is not understood",
    "load": "load: one row per loader; memory is counted above that of the imports, medians of fresh processes",
    "mla": "blocks --variants mla: one row per context and variant of one layer's attention, batch 1",
    "sparse": "blocks --variants sparse: one row per phase, context and variant of one layer's attention without its "
    "projections, batch 1",
    "blocks": "blocks: one row per block, alone, batch 1",
    "learn": "learn: one row per model, scaled down, with all of its runs",
    "learn_figures": "learn: one row per model and size of a task; for length, times the trained context",
    "learn_differences": "learn: one row per measure and model after the first; differences at equal seeds",
}


def _said(kind: Kind, description: str) -> Kind:
    return kind | ({"description": description} if description else {})


def _optional(kind: Kind, description: str = "") -> Kind:
    """Returns a kind that may be null."""
    null = {"enum": [*kind["enum"], None]} if "enum" in kind else {"type": [kind["type"], "null"]}
    return _said(kind | null, description)


def _list(items: Kind, least: int = 0, description: str = "") -> Kind:
    return _said({"type": "array", "items": items, "minItems": least}, description)


def _object(description: str = "", /, **columns: Kind) -> Kind:
    """Returns an object with these keys, all required."""
    kind = {"type": "object", "required": list(columns), "properties": columns, "additionalProperties": False}
    return _said(kind, description)


def _all(names: str, kind: Kind) -> dict[str, Kind]:
    """Returns columns of one kind."""
    return dict.fromkeys(names.split(), kind)


TEXT, WORD, BOOL = {"type": "string"}, {"type": "string", "minLength": 1}, {"type": "boolean"}
COUNT, POSITIVE = {"type": "integer", "minimum": 0}, {"type": "integer", "minimum": 1}
NUMBER, AMOUNT, RATE = {"type": "number"}, {"type": "number", "minimum": 0}, {"type": "number", "exclusiveMinimum": 0}
SHARE, HASH = {"type": "number", "minimum": 0, "maximum": 1}, {"type": "string", "pattern": "^[0-9a-f]{16}$"}
TIMES = _list(RATE, 1)
OPTIONAL_RATE, OPTIONAL_COUNT, OPTIONAL_TEXT = _optional(RATE), _optional(COUNT), _optional(TEXT)
OPTIONAL_NUMBER = _optional(NUMBER)
DTYPES = [form.name for form in PLAIN.values()]
COMPUTING = {"enum": [form.name for dtype, form in PLAIN.items() if dtype.itemsize > 1]}
SAMPLES = _list(_object(seed=COUNT, value=NUMBER), 1)
CURVE = _object(tokens=POSITIVE, flops=_said(POSITIVE, "training FLOPs so far"), seconds=RATE, bits_per_byte=RATE)
RUN = _object(
    task={"enum": [*ALL_TASKS]},
    seed=COUNT,
    name=_said(TEXT, "name of the stored file"),
    tokens=COUNT,
    seconds=_said(AMOUNT, "training steps alone"),
    figures={"type": "object", "additionalProperties": NUMBER},
    diverged=OPTIONAL_TEXT,
    curve=_list(CURVE),
)
ENDINGS = {**_all("_params _bytes _flops", COUNT), "_seconds": TIMES, **_all("_s _s_min _s_max", RATE)}
COLUMNS: dict[str, Kind] = {
    "values": {
        "type": "object",
        "additionalProperties": {"type": ["number", "string", "null"], "pattern": "^[0-9]{4}-[0-9]{2}$"},
        "description": "column as it was named, such as kv@32k -> elements, bytes, FLOPs, tokens per second",
    },
    **_all("mean learn_differences.low learn_differences.high", NUMBER),
    **_all("bits_per_byte_low bits_per_byte_high low high", OPTIONAL_NUMBER),
    **_all("gain reached against_absorbed", OPTIONAL_RATE),
    **_all("p", SHARE),
    **_all("depth warmups", COUNT),
    **_all("against_swap publisher_active_rule hub_note usual_formula hub note smaller too_large", OPTIONAL_TEXT),
    **_all(
        "layers params active_params flops_per_token_4k kv_bytes_32k longest_context "
        "kv_bytes_longest_context batch threads memory_bytes weight_bytes file_bytes "
        "model_bytes dim heads index_heads elements_per_token seeds size ranks amount compared from_context",
        POSITIVE,
    ),
    **_all("publisher_active_params name_active_params hub_params name_params allocated_bytes", OPTIONAL_COUNT),
    "tiny": BOOL,
    **_all("load.dtype ceilings.dtype device kernel field figure test", TEXT),
    "dtype": COMPUTING,
    **_all("tokens_per_s_std std figures.value figures.other learn_figures.mean", AMOUNT),
    "seconds": TIMES,
    **_all("min max flops_per_byte device_flops device_bandwidth learning_rate median", RATE),
    "learn.kv_bytes": COUNT,
    **_all("words source block description layer_pattern measure model against", WORD),
    "serve.bound": {"enum": ["memory", "bandwidth", "arithmetic", "links"]},
    "max_batch": _optional(COUNT, "sequences whose caches fit beside the weights; null where the memory is unknown"),
    "crossover_context": _optional(POSITIVE, "from it on, a step reads more bytes of caches than of weights"),
    "step_s": _said(RATE, "least time of a step, which decodes one token of every sequence"),
    "oracle.layer": _optional(WORD, "kind of layer, or `outside the layers`; null where rows sum over layers"),
    "oracle.layers": _said(COUNT, "layers of this kind, or of the model; 0 outside the layers"),
    "op": _optional(WORD, "operation: projections, scores, ffn, routed, head, ...; null where rows sum over them"),
    "past": _said(COUNT, "tokens in the cache before the pass, per sequence"),
    "new": _said(POSITIVE, "tokens of the pass, per sequence"),
    "oracle.flops": COUNT,
    "oracle.weight_bytes": _said(AMOUNT, "weights that are read, each once; of experts, the expected number"),
    "oracle.cache_bytes": _said(AMOUNT, "the cache after the pass: `kv_bytes` of the verb kv"),
    "cache_read_bytes": _said(AMOUNT, "entries of earlier tokens that a new token sees, and states"),
    "cache_written_bytes": _said(AMOUNT, "entries of new tokens, and states"),
    "activation_bytes": _said(COUNT, "the residual stream, read and written once by each branch, and the logits"),
    "oracle.sent_bytes": _said(AMOUNT, "sent to the other cards by collectives"),
    "estimated": {"const": True, "description": "no family reads the model's config; other rows lack this key"},
    **_all("ground group grounds.meaning", WORD),
    "grounds.field": _said(TEXT, "a field of config.json, a question, or a model"),
    **_all("bounds.value bounds.low bounds.high", AMOUNT),
    **_all("stored.stored", COUNT),
    "stored.estimate": _optional(COUNT, "null for what the files hold beside the language model"),
    "off_by": _optional({"type": "integer"}, "estimate - stored"),
    "samples": SAMPLES,
    "swap": _optional(TEXT, "swaps that were applied to the model of that name"),
    "dropped": _optional(TEXT, "features that the swaps removed"),
    "released": _optional({"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}$"}, "month of the release of the weights"),
    "costs.context": _optional(COUNT, "positions it was trained for or extended to"),
    "learn.context": _said(POSITIVE, "tokens of each training sequence"),
    "context": _said(POSITIVE, "tokens that the last token sees, itself included"),
    "windows": _list(_object(layers=POSITIVE, tokens=POSITIVE)),
    "state_layers": _said(COUNT, "layers that keep a state of a fixed size"),
    "kv_fixed_bytes": _said(COUNT, "for one sequence: full windows and states"),
    "kv_bytes_per_token": _said(COUNT, "for one sequence: bytes that the other layers add per token"),
    "weights": _said(TEXT, "random, or the name of the folder or file they come from"),
    "implementation": _said(
        {"enum": [ZOO, BASELINE, "one process"]}, "one process: the whole model in the first of several processes"
    ),
    "mode": _said(TEXT, "eager or compiled; for transformers its default attention (sdpa, eager), or compiled"),
    "throughput.phase": {"enum": ["prefill", "decode", "train"]},
    "phase": _said({"enum": ["decode", "prefill"]}, "decode: one token after the cached tokens; prefill: all tokens"),
    "tokens": _said(POSITIVE, "per sequence"),
    "learn.tokens_per_s": _optional(RATE, "training steps alone, one thread; median over the runs of the first task"),
    "tokens_per_s": _said(RATE, "all sequences together, at the median time or the ceiling"),
    "flops.seconds": _said(RATE, "least time: the longer of FLOPs / rate and bytes / bandwidth, plus sending_seconds"),
    "flops": _said(POSITIVE, "masked pairs are not counted; a training step counts as three forward passes"),
    "throughput.weight_bytes_read": _optional(
        POSITIVE, "each weight once per pass, except unused rows of the embedding and experts that no token hits"
    ),
    "weight_bytes_read": _said(POSITIVE, "without unused rows of the embedding and experts that no token likely hits"),
    "kv_bytes_read": _optional(POSITIVE, "the cache, up to the new tokens; null for a training step"),
    "experts_hit": _optional(AMOUNT, "counted per pass and layer with experts, on average; null where not counted"),
    "experts_hit_predicted": _optional(AMOUNT, "E (1 - (1 - k/E)^n) for the n tokens of a pass; null without experts"),
    "ceiling_tokens_per_s": _optional(RATE, "from this machine's ceilings, by bytes / bandwidth and FLOPs / rate"),
    "mbu": _optional(AMOUNT, "bytes read / time / measured bandwidth; null for a training step"),
    "mfu": _optional(AMOUNT, "FLOPs / time / measured arithmetic rate"),
    "gemms_tokens_per_s": _optional(RATE, "a prefill's matrix products with weights, one after the other"),
    "throughput.peak_bytes": _optional(COUNT, "weights, and the peak of all other memory; null where unknown"),
    "overhead": _optional(AMOUNT, "time of the same loop around an empty model, as a share of `seconds`"),
    "figures.ratio": _optional(AMOUNT, "other / value; null where value is 0"),
    "ratio": _optional(RATE, "speed over that of transformers as it runs by default, or of one process"),
    "step_seconds": _optional(RATE, "median time of a pass; for one process, this and the next four columns are null"),
    "read_seconds": _optional(RATE, "time to read a process's weights and cache while all processes read"),
    "compute_seconds": _optional(RATE, "time for a process's FLOPs at the arithmetic rate"),
    "exchange_seconds": _optional(RATE, "median time of the pass's collectives alone"),
    "of_predicted": _optional(RATE, "step_seconds / (max(read_seconds, compute_seconds) + exchange_seconds)"),
    "marks": _list({"enum": list(SIGNS)}),
    "layers.kind": _said(TEXT, "how these layers differ from the model's others"),
    "kind": {"enum": ["bandwidth", "matmul"]},
    "hub_beside": _list(
        _object(what=TEXT, params=POSITIVE), 0, "parts that the Hub counts beside the text model: hub_params - params"
    ),
    "cache_dtype": {"enum": DTYPES},
    "weights_dtype": _said({"enum": [*DTYPES, FOUR_BIT.name, *PACKED]}, "form in which weights are stored"),
    "tp": _said(POSITIVE, "cards that hold the model together; other figures are those of the first card"),
    "ep": _said(POSITIVE, "1, or tp: each card holds whole experts"),
    "kv_bytes": _said(POSITIVE, "all sequences at this context"),
    "usual_formula_kv_bytes": _optional(COUNT, "by usual_formula; null where a layer has no such formula"),
    "usual_formula_error": _optional({"type": "number", "minimum": -1}, "usual_formula_kv_bytes / kv_bytes - 1"),
    "context_that_fits": _optional(COUNT, "null where every context fits"),
    "trained_context": _optional(COUNT, "positions it was trained for or extended to"),
    "limit": _said({"enum": ["weights", "cache", "context"]}, "weights that do not fit, a full cache, or `context`"),
    "changes": _list(_object(from_context=POSITIVE, smaller=OPTIONAL_TEXT), 1),
    "full_square_flops": _said(POSITIVE, "with every pair that a masked dense kernel computes"),
    "device_link": _optional(RATE, "bytes per second that a card sends to others; null where unknown"),
    "sending_seconds": _said(AMOUNT, "part of `seconds` that sending takes; 0 without a known link"),
    "fits": _optional(BOOL, "whether weights and cache fit into the device's memory; null where that is unknown"),
    "flops.bound": {"enum": ["memory", "compute"]},
    "bound": _said(RATE, "difference that still counts as equal in this dtype"),
    "part": {"enum": ["attn", "ffn", "norm", "layers", "embedding", "head"]},
    "sentence": _said(TEXT, "about `against`"),
    "bounds.unit": {"enum": ["parameters", "bytes", "FLOPs"]},
    "figures.unit": {"enum": ["parameters", "bytes", "FLOPs", "tokens/s"]},
    "value": _optional(TEXT, "null where the block has no such field"),
    "other": _optional(TEXT, "null where the block has no such field"),
    "loader": {"enum": [ZOO, BASELINE]},
    "mla.variant": {"enum": [*MLAVariants.VARIANTS]},
    "variant": {"enum": [*SparseVariants.VARIANTS]},
    "k": _said(POSITIVE, "tokens that the indexer chooses for each token"),
    "crossover_tokens": _optional(POSITIVE, "tokens in the cache from which on sparse decode takes fewer FLOPs"),
    "mla.difference": _optional(AMOUNT, "largest difference from absorbed's output, as a share of its largest element"),
    "difference": _said(AMOUNT, "largest difference from attention under the mask, as a share of the largest element"),
    "predicted_gain": _optional(RATE, "FLOPs of full over those of sparse; null for full"),
    **{f"mla.decode_s{end}": OPTIONAL_RATE for end in ("", "_min", "_max")},
    "mla.decode_seconds": _list(RATE),
    "group": {"enum": ["attention", "feed-forward", "norm", "placement"]},
    "match": _said({"enum": ["params", "active", "flops", "kv"]}, "quantity that was made equal"),
    "budgets": _list(_object(unit=TEXT, wanted=POSITIVE, met=POSITIVE), 1),
    "flops_per_token": _said(RATE, "forward pass, mean over `context`; training takes three times as many"),
    "sweep": _list(_object(learning_rate=RATE, bits_per_byte=_optional(RATE, "null where training diverged"))),
    "sweep_edge": _optional({"enum": ["lowest", "highest"]}, "set where the best rate is the last one tried"),
    "bits_per_byte": _optional(RATE, "held-out text, mean over seeds; null where it was not trained on text"),
    "data": _optional(TEXT, "the text; null where a task generates its sequences"),
    "data_hash": _optional(HASH, "hash of text and tokens; figures of different hashes cannot be compared"),
    "code_hash": _said(HASH, "hash of the code that figures depend on"),
    "runs": _list(RUN),
    "task": {"enum": [*ALL_TASKS]},
    "learn_differences.size": _optional(POSITIVE, "null for text"),
    "unit": {"enum": ["bits per byte", "accuracy"]},
    "chance": _optional(RATE, "accuracy of a guess"),
    "level": _said(SHARE, "level at which Holm's procedure tests the difference: 0.05 / number of models, or more"),
}
MACHINE: dict[str, Kind] = {**_all("platform cpu", TEXT), "threads": POSITIVE, **_all("python torch", TEXT)}
MEASURED_ON: dict[str, Kind] = {
    "isa": _list(TEXT),
    "cores": POSITIVE,
    "blas": TEXT,
    "device": TEXT,
    "last_cache_bytes": OPTIONAL_COUNT,
    "gpu": OPTIONAL_TEXT,
    "driver": OPTIONAL_TEXT,
    "commit": _optional(TEXT, "this project's commit, where it runs from a checkout"),
    "kernels": {
        "type": "object",
        "additionalProperties": WORD,
        "description": "kernel of each operation and dtype that is decided or set: 'linear prefill, float32'; all "
        "others are plain, torch's own call. 'onednn or plain' where several processes differ.",
    },
    "kernels_set": _optional(TEXT, "environment variable ZOO_KERNELS, null where it is not set"),
}


def examples() -> Iterator[Row]:
    """Yields rows of every table, as the table's code writes them. Some figures are made up.

    Rows that need training or a running model come from the documents in docs/.
    """
    first, second, config = one("gemma3"), one("qwen3"), InferenceConfig()
    yield from (cost_row(first), param_row(first), *layer_rows(first), cache_row(first, 4096, config))
    yield from (fit_row(first, 10**9, config), crossing_row(first, second, config))
    yield flop_row(first, "decode", 4096, config, device("h100"))
    yield quantity_row(first, [], config, device("h100"))
    yield from (*structure_rows(first, second), *difference_rows(first, second))
    yield from figure_rows(first, second, 4096, config, device("h100"))
    yield serve_row(first, 4096, config, device("h100"))
    yield from oracle_rows(first, 4095, 1, config, ["layer", "op"])[:1]
    yield from _of_estimates()
    loaded = {"load_s": 1.0, "ready_s": 1.0, "model_bytes": 1, "peak_bytes": 1, "anonymous_bytes": 1}
    yield from loading.rows(Path("model"), "float32", {ZOO: [loaded]})
    for kind in (MLAVariants, SparseVariants):
        comparison = of_model(kind, one(kind.MODEL), False, VariantsConfig([4096]))
        about = {"model": "", "hub": None, "swap": None, "dropped": None, "tiny": False}
        yield about | comparison.row(kind.VARIANTS[0], "decode", 4096)
    listed = blocks.block_list(256)[:1]
    samples: Samples = {(listed[0].label, phase): [1.0] for phase in ("prefill", "decode")}
    yield from blocks.rows(listed, blocks.BlockConfig(256, 1, 1, torch.float32), samples)
    for folder in ("performance", "learning"):
        yield from chain.from_iterable(read(file)["rows"] for file in kept(DOCS / folder).values())


def _of_estimates() -> Iterator[Row]:
    """Yields rows of the tables about estimated models."""
    fields = dict(vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=2, tower_size=1)
    stored = StoredShapes({"model.embed_tokens.weight": (8, 4), "model.layers.0.mlp.up_proj.weight": (16, 4)})
    model = NamedSpec("model", (guess := estimate(fields, stored)).spec, estimate=guess)
    yield from bound_rows(model, InferenceConfig())
    yield from (*stored_rows(model), *ground_rows(model), *unknown_rows(one("qwen3"), model))


def holds(table: str, column: str) -> Kind:
    """Returns the kind of a table's column."""
    if column == "table":
        return {"const": table}
    if found := COLUMNS.get(f"{table}.{column}") or COLUMNS.get(column):
        return found
    return next(kind for ending, kind in ENDINGS.items() if column.endswith(ending))


def schema() -> Kind:
    """Returns the schema of a document."""
    tables = {row["table"]: list(row) for row in examples()}
    rows = {table: {"title": title} | _row(table, tables[table]) for table, title in TITLES.items()}
    machine = _object("where the document was written, and how measured rows were measured", **MACHINE)
    machine["properties"] = MACHINE | MEASURED_ON
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Output of python -m benchmarks with --format json",
        "description": "One document. With --format jsonl the first line is this object without its rows, and each "
        "further line is one row. `table` names the definition that a row follows. Parameters are counts, bytes are "
        "bytes, FLOPs are 2 per multiply-add of matrix products, times are seconds; null: not applicable.",
        "type": "object",
        "required": ["schema_version", "machine", "rows"],
        "properties": {
            "schema_version": {"const": SCHEMA_VERSION},
            "machine": machine,
            "complete": _said(BOOL, "false where an interruption cut the measurement short"),
            "rows": {"type": "array", "items": {"$ref": "#/$defs/row"}},
        },
        "additionalProperties": False,
        "$defs": {
            "row": {
                "type": "object",
                "required": ["table"],
                "oneOf": [{"$ref": f"#/$defs/{table}"} for table in rows],
            },
            **rows,
        },
    }


def _row(table: str, columns: Iterable[str]) -> Kind:
    """Returns a table's row. Rows about a model have the key `estimated` only if the model is estimated."""
    kind = _object(**{column: holds(table, column) for column in columns})
    if "swap" in kind["properties"]:
        kind["properties"] = kind["properties"] | {"estimated": holds(table, "estimated")}
    return kind


def text() -> str:
    """Returns the text of the file, with a line for each column."""
    lines = re.sub(r"\[[^][{}]*\]", lambda values: " ".join(values[0].split()), json.dumps(schema(), indent=1))
    return re.sub(r"\n {5,}|\n {4}(?=[]}])", " ", lines) + "\n"
