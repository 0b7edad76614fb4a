"""python -m weights.generate SOURCE PROMPT: continue a prompt with a released model, or answer it (--chat).

Words in, words out, where the source has a tokenizer.json. Token ids in, token ids out: --tokens 2,818,5279.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from weights.tokenizer import chat_prompt
from weights.formats.json_limits import member
from weights.loading import Source, fill, open_source
from weights.sources import TOKENIZER
from zoo.cli.runner import Debug, run
from zoo.core.devices import find_device
from zoo.errors import MalformedError, NotAvailable, UsageError, require_package
from zoo.units import dtype_name, format_count

app = typer.Typer(add_completion=False)


@app.command()
def main(
    source: Annotated[
        str, typer.Argument(help="ORG/NAME or ORG/NAME@REVISION on the hub, a preset, a folder, or a .gguf file.")
    ],
    prompt: Annotated[str | None, typer.Argument(help="Text to continue; - reads it from stdin.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the source's chat template.")] = False,
    tokens: Annotated[str | None, typer.Option(help="Token ids to continue instead, as 2,818,5279.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Stop after this many tokens.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token; above, sample.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Sample among the k likeliest.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample among the fewest that hold this probability.")] = None,
    seed: Annotated[int | None, typer.Option(help="Make the samples repeatable.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16, float16.")] = "auto",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a source on the hub.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Take from the download cache only.")] = False,
    check_finite: Annotated[bool, typer.Option("--check-finite", help="Refuse weights that are NaN or Inf.")] = False,
    ignore_field: Annotated[list[str] | None, typer.Option(help="A field of the config to vouch for.")] = None,
    debug: Debug = False,
) -> None:
    """Continue a prompt with a released model. The new text goes to stdout, all else to stderr."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("weights").setLevel(logging.INFO)
    if (prompt is None) == (tokens is None):
        raise UsageError("give either a PROMPT in words or --tokens with ids")
    if chat and prompt is None:
        raise UsageError("--chat is for a PROMPT in words")
    text = sys.stdin.read().removesuffix("\n") if prompt == "-" else prompt
    place, opened = find_device(device), open_source(source, revision, offline)
    tokenizer = None if text is None else read_tokenizer(opened)
    ids = _numbers(tokens or "") if text is None else encode(tokenizer, opened, text, chat)
    if not ids:
        raise UsageError("the prompt holds no token")
    began = time.perf_counter()
    model = fill(opened.spec(ignore_field or ()), opened, place, dtype, check_finite)
    held, seconds = dtype_name(model.embed.weight.dtype), time.perf_counter() - began
    _note(f"{format_count(model.spec.params())} parameters, {held} on {place}, in {seconds:.1f} s")
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
    _write(new, len(ids), _listing() if tokenizer is None else spelling(tokenizer, ids), opened.ends)


def _write(new: Iterator[torch.Tensor], given: int, show: Callable[[int], str], ends: Container[int]) -> None:
    """Print each token as it comes, and at last how fast they came and why no more did. The first one comes with the
    prompt's pass."""
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
    why = f"stopped by end token {last}" if last in ends else f"stopped after --max-new-tokens {len(times) - 1}"
    _note(f"prompt of {given} tokens in {first:.2f} s ({given / first:.1f} tokens/s){later}; {why}")


def _listing() -> Callable[[int], str]:
    """Tokens as ids, with commas between."""
    before = iter(("",))
    return lambda token: f"{next(before, ',')}{token}"


def spelling(tokenizer: Any, ids: list[int]) -> Callable[[int], str]:
    """Tokens as the text that each completes, which for a part of a character is none yet."""
    decoders = require_package("tokenizers.decoders", "text")
    stream = decoders.DecodeStream(ids=ids, skip_special_tokens=True)
    return lambda token: stream.step(tokenizer, token) or ""


def encode(tokenizer: Any, source: Source, text: str, chat: bool) -> list[int]:
    """A text's tokens, with those that the tokenizer puts around each; a chat template has put them there itself."""
    if chat:
        text = chat_prompt(home(source), text)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the prompt is no text in UTF-8: {error.reason} at {error.start}") from error
    return list(tokenizer.encode(text, add_special_tokens=not chat).ids)


def home(source: Source) -> Path:
    """The folder in which a source's other files are."""
    return source.path if source.path.is_dir() else source.path.parent


def read_tokenizer(source: Source) -> Any:
    """The tokenizer.json in the folder of the source. Raises NotAvailable where there is none."""
    folder = home(source)
    if not (folder / TOKENIZER).is_file():
        raise NotAvailable(f"{folder} has no {TOKENIZER} to read a prompt with; give ids: --tokens 2,818,5279")
    path, tokenizers = member(folder, TOKENIZER), require_package("tokenizers", "text")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no errors of its own
        raise MalformedError(f"{path}: no readable tokenizer: {error}") from error


def _numbers(tokens: str) -> list[int]:
    try:
        return [int(token) for token in tokens.split(",")]
    except ValueError as error:
        raise UsageError(f"--tokens {tokens!r}: not ids with commas between, as in 2,818,5279") from error


def _note(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    run(app, "python -m weights.generate")
