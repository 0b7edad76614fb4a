"""Compares the zoo with the reference, on the same weights and prompts (random ids and text): `parity`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weights.formats.zoo_folder import ZooFolder
from weights.loading import open_source
from weights.reference.model import transformers
from weights.reference.own_spec import SpecReport, own_parity
from weights.reference.report import ParityReport, Rounded
from weights.reference.runs import Models, run_all
from weights.sources import is_path
from weights.tokenizer import TOKENIZER, read_tokenizer
from zoo.arguments import find_dtype
from zoo.core import processes
from zoo.core.devices import free_memory
from zoo.errors import MalformedError, NotAvailable, UsageError, unknown
from zoo.model.decoder import Decoder
from zoo.model.parallel import Ranks
from zoo.units import dtype_name

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
SEEDS = 3  # random prompts, over which rounding errors are pooled
MEMORY_SHARE = 0.8  # share of the free memory for models and logits together
MIN_TOKENS, TOKENS_PAST_WINDOW = 256, 64  # the default length of a prompt
MAX_TOKENS = 4096  # default limit for wide windows: attention scores grow with the square of the length
# The second paragraph of the Declaration of Independence, 1776.
TEXT = """We hold these truths to be self-evident, that all men are created equal, that they are endowed by their \
Creator with certain unalienable Rights, that among these are Life, Liberty and the pursuit of Happiness.--That to \
secure these rights, Governments are instituted among Men, deriving their just powers from the consent of the \
governed, --That whenever any Form of Government becomes destructive of these ends, it is the Right of the People to \
alter or to abolish it, and to institute new Government, laying its foundation on such principles and organizing its \
powers in such form, as to them shall seem most likely to effect their Safety and Happiness. """


@torch.no_grad()
def parity(
    source: str | Path,
    *,
    tokens: int | None = None,
    dtype: str | torch.dtype = "float32",
    seed: int = 0,
    text: str | None = None,
    reference: str | Path | None = None,
    spec: Decoder | None = None,
    streaming: bool | None = None,
    ranks: Ranks = Ranks(),
    revision: str | None = None,
    offline: bool = False,
    ignore_fields: Iterable[str] = (),
) -> ParityReport | SpecReport:
    """Compares the zoo's model of a source with transformers' model of it, on the CPU. A model in the zoo's own layout,
    which transformers does not read, is compared with its own spec instead (SpecReport).

    Both models first run in float64, which decides whether they are equal. Then both run in `dtype` (float32 or
    bfloat16), and the zoo's rounding error is compared with the reference's. `dtype` "float64" skips the second step.

    `source`, `revision` and `offline` are as for `weights.load`. Prompts have `tokens` tokens; None means enough to
    leave every window. They are random ids from three seeds, starting with `seed`, and `text` if the source has a
    tokenizer.json. `reference` is another source for the reference's weights, to show the effect of a conversion.
    `spec` is another spec for the zoo's model, to show the effect of a changed block. `streaming` holds one layer at a
    time in memory; None does so only if both models do not fit. `ranks` divide the zoo's model (tensor parallelism):
    all of them call this function together and get the same report.

    Raises the errors of `weights.load`, and NotAvailable if transformers is not installed.
    """
    if (name := dtype_name(find_dtype(dtype, computing=True))) not in DTYPES:
        raise unknown("dtype to compare in", name, DTYPES)
    if not is_path(source):
        transformers()  # raises before anything is downloaded
    opened = open_source(source, revision, offline)
    if isinstance(opened, ZooFolder) and reference is None:
        if ranks.group is not None:
            raise UsageError(f"{source} is compared with its own spec, in one process: leave --tp out")
        return own_parity(str(source), opened, opened.spec(ignore_fields), DTYPES[name], seed)
    transformers()
    other = opened if reference is None else open_source(reference, None, offline)
    spec = opened.spec(ignore_fields) if spec is None else spec
    if reference is not None:
        _check_comparable(spec, other.spec(ignore_fields), f"{source} and {reference}")
    rows = prompts(opened.folder, spec, tokens, text, seed)
    models = Models(spec, opened, other, torch.stack(list(rows.values())), ranks)
    if streaming is None:
        streaming = processes.from_first(lambda: not _fits_in_memory(models))
    results = run_all(models, DTYPES[name], streaming)
    exact, rounded = torch.float64, DTYPES[name]
    return ParityReport(
        source=str(source),
        parameters=spec.params(),
        dtype=name,
        prompts=tuple(rows),
        length=models.tokens.shape[1],
        seed=seed,
        window=widest_window(spec),
        streaming=streaming,
        ranks=ranks.count,
        reference=f"transformers {transformers().__version__}, eager attention, {results.origin}",
        has_choices=any(selections.indices for selections in results.selections.values()),
        exact=results.differences[exact, "zoo"],
        exact_cached=results.differences[exact, "cached"],
        parts=results.parts,
        rounded=None
        if rounded == exact
        else Rounded(*(results.differences[rounded, side] for side in ("zoo", "cached", "reference"))),
    )


def _fits_in_memory(models: Models) -> bool:
    """Whether both models fit in memory in float64, together with the logits of both and one copy."""
    free = free_memory(torch.device("cpu"))
    needed = 8 * (2 * models.spec.params() + 3 * models.tokens.numel() * models.spec.vocab)
    return free is None or needed < MEMORY_SHARE * free


def _check_comparable(one: Decoder, other: Decoder, what: str) -> None:
    """Raises UsageError for two models whose parts cannot take each other's inputs."""

    def shape(spec: Decoder) -> dict[str, Any]:
        with_experts = [i for i, layer in enumerate(spec.layers) if layer.mixture]
        sizes = {"layers": len(spec.layers), "width": spec.dim, "vocabulary": spec.vocab}
        return sizes | {"layers with experts": len(with_experts), "indices of these": with_experts}

    pairs = zip(shape(one).items(), shape(other).values(), strict=True)
    if differ := [f"{name} {first} and {second}" for (name, first), second in pairs if first != second]:
        raise UsageError(f"{what} cannot be compared: {', '.join(differ[:4])}")


def prompts(folder: Path, spec: Decoder, length: int | None, text: str | None, seed: int) -> dict[str, Tensor]:
    """Returns prompts of token ids (t,), by description: random ids and, where the folder has a tokenizer.json, text.

    `length` None means long enough to leave every window. `text` replaces the default text and is repeated to the
    length.
    """
    length = _prompt_length(spec, length)
    rows = {}
    for each in range(seed, seed + SEEDS):
        generator = torch.Generator().manual_seed(each)
        rows[f"random ids, seed {each}"] = torch.randint(spec.vocab, (length,), generator=generator)
    if (folder / TOKENIZER).is_file():
        rows = {"text": _text_ids(folder, TEXT if text is None else text, length, spec.vocab)} | rows
    elif text is not None:
        raise NotAvailable(f"{folder} has no {TOKENIZER} to read a text with")
    return rows


def widest_window(spec: Decoder) -> int:
    """Returns the tokens of the widest sliding window or chunk, or 0 if no layer has either."""
    return max((layer.cache_spec().reach.limit or 0 for layer in spec.layers), default=0)


def _prompt_length(spec: Decoder, length: int | None) -> int:
    if length is None:
        past_window = widest_window(spec) + TOKENS_PAST_WINDOW
        length = min(max(MIN_TOKENS, past_window), MAX_TOKENS, spec.context or MAX_TOKENS)
    if length < 2:
        raise UsageError(f"--tokens must be at least 2, so that one sees another, got {length}")
    if spec.context is not None and length > spec.context:
        raise UsageError(f"--tokens must be at most the model's context of {spec.context}, got {length}")
    return length


def _text_ids(folder: Path, text: str, length: int, vocab: int) -> Tensor:
    tokenizer = read_tokenizer(folder)
    first, again = (tokenizer.encode(text, add_special_tokens=special).ids for special in (True, False))
    if not again:
        raise UsageError("the text has no tokens")
    ids = torch.tensor(first + again * (length // len(again) + 1))[:length]
    if int(ids.max()) >= vocab:
        raise MalformedError(f"{folder / TOKENIZER}: token ids must be below the model's {vocab}, got {int(ids.max())}")
    return ids
