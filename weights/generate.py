"""python -m weights.generate SOURCE PROMPT: continue a prompt with a released model.

Words in, words out, where the source has a tokenizer.json. Token ids in, token ids out: --tokens 2,818,5279.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import torch
import typer

from weights.extras import need
from weights.loading import Source, fill, open_source
from zoo.decoder import Model
from zoo.errors import MalformedError, NotAvailable, UsageError
from zoo.terminal import Debug, count, run

app = typer.Typer(add_completion=False)


@app.command()
def main(
    source: Annotated[str, typer.Argument(help="A folder in Hugging Face layout, or a .gguf file.")],
    prompt: Annotated[str | None, typer.Argument(help="Text to continue.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Token ids to continue instead, as 2,818,5279.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Stop after this many tokens.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token; above, sample.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Sample among the k likeliest.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample among the fewest that hold this probability.")] = None,
    seed: Annotated[int | None, typer.Option(help="Make the samples repeatable.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16, float16.")] = "auto",
    ignore_field: Annotated[list[str] | None, typer.Option(help="A field of the config to vouch for.")] = None,
    debug: Debug = False,
) -> None:
    """Continue a prompt with a released model. The new text goes to stdout, all else to stderr."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("weights").setLevel(logging.INFO)
    if (prompt is None) == (tokens is None):
        raise UsageError("give either a PROMPT in words or --tokens with ids")
    place, opened = usable(device), open_source(source)
    tokenizer = None if prompt is None else read_tokenizer(opened)
    ids = _numbers(tokens or "") if tokenizer is None else tokenizer.encode(prompt).ids
    if not ids:
        raise UsageError("the prompt holds no token")
    began = time.perf_counter()
    model = fill(opened.spec(ignore_field or ()), opened, place, dtype)
    _note(f"{count(model.spec.params())} parameters, {_name(model)} on {place}, in {time.perf_counter() - began:.1f} s")
    outside = [token for token in ids if not 0 <= token < model.spec.vocab]
    if outside:
        raise UsageError(f"no tokens of this model, which has {model.spec.vocab}: {', '.join(map(str, outside))}")
    new = model.stream(
        torch.tensor([ids], device=place),
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=opened.ends,
    )
    _write(new, len(ids), _listing() if tokenizer is None else spelling(tokenizer, ids))


def _write(new: Iterator[torch.Tensor], given: int, show: Callable[[int], str]) -> None:
    """Print each token as it comes, and at last how fast they came. The first one comes with the prompt's pass."""
    times = [time.perf_counter()]
    try:
        for token in new:
            times.append(time.perf_counter())
            print(show(int(token)), end="", flush=True)
    finally:
        if len(times) > 1:
            print()
    first, rest, steps = times[1] - times[0], times[-1] - times[1], len(times) - 2
    later = f", then {steps} in {rest:.2f} s ({steps / rest:.1f} tokens/s)" if steps else ""
    _note(f"prompt of {given} tokens in {first:.2f} s ({given / first:.1f} tokens/s){later}")


def _listing() -> Callable[[int], str]:
    """Tokens as ids, with commas between."""
    before = iter(("",))
    return lambda token: f"{next(before, ',')}{token}"


def spelling(tokenizer: Any, ids: list[int]) -> Callable[[int], str]:
    """Tokens as the text that each completes, which for a part of a character is none yet."""
    decoders = need("tokenizers.decoders", "text")
    stream = decoders.DecodeStream(ids=ids, skip_special_tokens=True)
    return lambda token: stream.step(tokenizer, token) or ""


def read_tokenizer(source: Source) -> Any:
    """The tokenizer.json in the folder of the source. Raises NotAvailable where there is none."""
    path = (source.path if source.path.is_dir() else source.path.parent) / "tokenizer.json"
    if not path.is_file():
        raise NotAvailable(f"{path.parent} has no tokenizer.json to read a prompt with; give ids: --tokens 2,818,5279")
    tokenizers = need("tokenizers", "text")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no errors of its own
        raise MalformedError(f"{path}: no readable tokenizer: {error}") from error


def usable(device: str) -> torch.device:
    """The device, once it has held a tensor. Raises UsageError for no device's name, NotAvailable for one not here."""
    try:
        named = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"{device!r} names no device; try cpu, cuda, cuda:1 or mps") from error
    try:
        return torch.empty(0, device=named).device
    except (RuntimeError, AssertionError) as error:
        raise NotAvailable(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error


def _numbers(tokens: str) -> list[int]:
    try:
        return [int(token) for token in tokens.split(",")]
    except ValueError as error:
        raise UsageError(f"--tokens {tokens!r}: not ids with commas between, as in 2,818,5279") from error


def _name(model: Model) -> str:
    return str(model.embed.weight.dtype).removeprefix("torch.")


def _note(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    run(app, "python -m weights.generate")
