"""python -m weights.generate SOURCE PROMPT: continues a prompt with a released model, or answers it (--chat).

If the source has a tokenizer, the prompt and the output are text. With --tokens 2,818,5279, both are token ids.
"""

import logging
import secrets
import sys
import time
from collections.abc import Callable, Container, Iterator
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import torch
import typer

from weights.loading import fill, open_source
from weights.sources import locate_tokenizer
from weights.tokenizer import decoder, encode
from zoo.cli.runner import Debug, ExpertParallel, Imports, TensorParallel, quiet_unless_first, run, tensor_parallel
from zoo.core import processes
from zoo.errors import UsageError
from zoo.model.parallel import Ranks
from zoo.model.sampling import GenerationConfig
from zoo.sharding import require_same_ranks
from zoo.units import dtype_name, format_count

app = typer.Typer(add_completion=False)


@app.command()
def main(
    source: Annotated[
        str, typer.Argument(help="ORG/NAME or ORG/NAME@REVISION on the hub, a preset, a folder, or a .gguf file.")
    ],
    prompt: Annotated[str | None, typer.Argument(help="Text to continue; - reads it from stdin.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the source's chat template.")] = False,
    tokens: Annotated[str | None, typer.Option(help="Token ids to continue instead of a text: 2,818,5279.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Another source's tokenizer and chat template.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of new tokens.")] = 64,
    sample: Annotated[
        bool, typer.Option("--sample", help="Sample with the settings that the source publishes.")
    ] = False,
    temperature: Annotated[
        float | None, typer.Option(help="Sampling temperature; 0 takes the most likely token. Default: 0.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample among the k most likely tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample among the fewest tokens with this total probability.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the samples. Default: a different one each time.")] = None,
    device: Annotated[str, typer.Option(help="Device: cpu, cuda, cuda:1, mps.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Dtype: auto (as stored), float32, bfloat16, float16.")] = "auto",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a source on the hub.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use the download cache only.")] = False,
    check_finite: Annotated[bool, typer.Option("--check-finite", help="Refuse weights that are NaN or Inf.")] = False,
    ignore_field: Annotated[list[str] | None, typer.Option(help="Field of the config to ignore (repeatable).")] = None,
    tp: TensorParallel = 1,
    ep: ExpertParallel = 1,
    import_: Imports = None,
    debug: Debug = False,
) -> None:
    """Continue a prompt with a released model. The new text goes to stdout, everything else to stderr.

    Each step takes the most likely token, unless --sample or --temperature is given. Generation stops at the source's
    end tokens.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("weights").setLevel(logging.INFO)
    if (prompt is None) == (tokens is None):
        raise UsageError("give either a PROMPT in words or --tokens with ids")
    if (chat or tokenizer) and prompt is None:
        raise UsageError(f"--{'chat' if chat else 'tokenizer'} is for a PROMPT in words")
    require_same_ranks(tp, ep)
    with tensor_parallel(device, tp, "weights.generate") as (place, group), quiet_unless_first():
        text = processes.from_first(lambda: sys.stdin.read().removesuffix("\n") if prompt == "-" else prompt)
        opened = open_source(source, revision, offline)
        published = opened.generation
        settings = _settings(published, source, sample, temperature, top_k, top_p)
        text_source = opened.text_path if tokenizer is None else locate_tokenizer(tokenizer, offline)
        encoder, ids = (None, _ids(tokens or "")) if text is None else encode(text_source, text, chat)
        if not ids:
            raise UsageError("the prompt has no tokens")
        if seed is None:
            seed = processes.from_first(partial(secrets.randbits, 31))  # every process draws the same samples
        began, spec = time.perf_counter(), opened.spec(ignore_field or ())
        model = fill(spec, opened, place, dtype, check_finite, Ranks(group, whole_experts=ep > 1))
        kind, seconds = dtype_name(model.embed.weight.dtype), time.perf_counter() - began
        where = f"{place}" if group is None else f"{tp} x {place.type}, {format_count(model.spec.params())} in this one"
        loaded = f"{format_count(spec.params())} parameters, {kind} on {where}, in {seconds:.1f} s"
        print(f"{loaded}; {_described(settings, published, seed)}", file=sys.stderr)
        if outside := [token for token in ids if not 0 <= token < spec.vocab]:
            raise UsageError(f"token ids must be below {spec.vocab}, got {', '.join(map(str, outside))}")
        given, ends = torch.tensor([ids], device=place), published.stop
        new = model.stream(given, max_new_tokens, seed=seed, stop=ends, **settings.sampling)
        _print(new, len(ids), decoder(encoder, ids) if encoder else _comma_separated(), ends)


def _settings(
    published: GenerationConfig,
    source: str,
    sample: bool,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
) -> GenerationConfig:
    """Returns the generation settings: greedy or, with `sample`, the published settings. Given options override them.
    Raises UsageError for `sample` without any temperature, and for `top_k` or `top_p` without sampling."""
    if sample and not published.temperature and temperature is None:
        raise UsageError(f"{source} publishes no settings for --sample; give a --temperature")
    if not sample and not temperature and (top_k, top_p) != (None, None):
        raise UsageError("--top-k and --top-p are for samples: give --sample or a --temperature too")
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return replace(published if sample else GenerationConfig(), **chosen)


def _described(settings: GenerationConfig, published: GenerationConfig, seed: int) -> str:
    """Describes the settings in use and, for greedy decoding, the published sampling settings."""
    if settings.temperature:
        return f"sampling with {_in_words(settings)}, seed {seed}"
    return f"greedy; --sample uses the published {_in_words(published)}" if published.temperature else "greedy"


def _in_words(settings: GenerationConfig) -> str:
    words = {name.replace("_", "-"): value for name, value in settings.sampling.items() if value is not None}
    return ", ".join(f"{name} {value:g}" for name, value in words.items())


def _print(new: Iterator[torch.Tensor], prompt: int, show: Callable[[int], str], end_tokens: Container[int]) -> None:
    """Prints each token as soon as it is generated, then the tokens per second and the reason why generation stopped.
    The time until the first token counts as the prompt's forward pass."""
    times, last = [time.perf_counter()], -1
    try:
        for token in new:
            times.append(time.perf_counter())
            last = int(token)
            print(show(last), end="", flush=True)
    finally:
        if len(times) > 1:
            print()
    first, rest, steps = times[1] - times[0], times[-1] - times[1], len(times) - 2
    later = f", then {steps} in {rest:.2f} s ({steps / rest:.1f} tokens/s)" if steps else ""
    why = f"stopped by end token {last}" if last in end_tokens else f"stopped after --max-new-tokens {len(times) - 1}"
    speed = f"{prompt / first:.1f} tokens/s"
    print(f"prompt of {prompt} tokens in {first:.2f} s ({speed}){later}; {why}", file=sys.stderr)


def _comma_separated() -> Callable[[int], str]:
    before = iter(("",))
    return lambda token: f"{next(before, ',')}{token}"


def _ids(tokens: str) -> list[int]:
    try:
        return [int(token) for token in tokens.split(",")]
    except ValueError as error:
        raise UsageError(f"--tokens must be ids with commas between, as in 2,818,5279, got {tokens!r}") from error


if __name__ == "__main__":
    run(app, "python -m weights.generate")
