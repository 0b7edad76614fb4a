"""Calls that are wrong: one line on stderr that says what to do, an exit code, and nothing on stdout."""

from __future__ import annotations

from pathlib import Path

import pytest

import weights
import zoo
from benchmarks.__main__ import app
from zoo.cli.runner import exit_code
from zoo.swaps.grammar import SUMMARY

USAGE = {  # a call -> a part of its error
    "parms": "did you mean params",
    "qwen4": "did you mean qwen3",
    "--json params": "the verb comes first",
    "--with blocks": "no published size has 'blocks'",  # a verb elsewhere
    "--format xml": "xml",
    "--sizes": "--sizes",
    "--static --seed -5": "--seed",
    "mla": "the verb mla is now: python -m benchmarks blocks --variants mla",
    "sparse --prefill": "the verb sparse is now: python -m benchmarks blocks --variants sparse",
    "flops --device-spec h10": "did you mean h100",
    "flops --bandwidth 900": "go together",
    "flops --bandwidth 900 --flops -1": "above 0",
    "kv --memory 3apples": "write 24GB or 80GiB",
    "kv --context long": "write 4096 or 4k",
    "kv --cache-dtype int3": "invalid value for '--cache-dtype': unknown dtype 'int3'",
    "kv --against gemma": "unknown model 'gemma'",
    "params --since 2025-13": "'2025-13' is not a month; write 2025-06",
    "params --since 2025-09": "no published size was released in 2025-09 or later; the latest are from 2025-08: ",
    "params --with shared-expert": "has 'shared-expert'; did you mean shared expert?",
    "params --with post": "no published size has 'post'; ",
    "params --with MLA --with sinks": "meets all conditions: MLA: deepseek-v3-671b; sinks: gpt-oss-20b, ",
    "params qwen3 --with MoE": "--with chooses among all models: leave it out, or name none",
    "params qwen3 --since 2025-01": "--since chooses among all models",
    "gallery --out page/index.html": "--out takes a folder, in which index.html is written: --out page",
    "params qwen3-8b --all-sizes": "--all-sizes chooses among all models",
    "params --with MoE --swap norm=olmo": "--swap changes the models that are named",
    "blocks --dim 100": "--dim 100 must be a multiple of 256",
    "blocks --dim 0": "dim",
    "blocks --dtype fp8": "choose float32, bfloat16, float16",
    "blocks --repeat 0": "repeat",
    "blocks deepseek-v3": "NAME is for --variants",
    "blocks --context 1k --context 2k": "--context can be repeated only with --variants",
    "blocks --variants mla qwen3": "qwen3-0.6b has no MLA; a model with it: deepseek-v3",
    "blocks --variants mla --swap MLA(heads=0)": "heads",
    "blocks --variants mla --dim 256": "--dim is for blocks without --variants",
    "blocks --variants mla --prefill": "--prefill is for --variants sparse",
    "blocks --variants sparse llama3": "has no sparse attention; a model with it: deepseek-v3.2",
    "blocks --variants sparse --context 2k": "give more than the k=2048 tokens that are chosen",
    "throughput qwen3 -p 0 -n 0": "nothing to measure",
    "throughput qwen3 --train -p 64": "--prompt is for prefill and decode",
    "throughput qwen3 --train -d 0": "--depth is for prefill and decode",
    "throughput qwen3 --context 64": "--context is for --train",
    "throughput qwen3 --dtype fp8": "for storing only",
    "throughput qwen3 --mode fast": "fast",
    "throughput qwen3 --peer vllm": "vllm",
    "throughput qwen3 --layers 0": "--layers",
    "throughput qwen3 --device cdua": "did you mean cuda",
    "throughput qwen3 --tiny --tp 2": "torchrun --nproc-per-node 2 -m benchmarks throughput ... --tp 2 starts 2",
    "throughput qwen3 --tiny --tp 2 --train": "--train with --tp: training divides the data, torchrun -m zoo.train",
    "throughput qwen3 --tiny --tp 2 --peer transformers": "transformers runs in one process; with --tp, --peer is one-",
    "throughput qwen3 --tiny --peer one-process": "--peer one-process needs --tp",
    "throughput qwen3 --tiny --tp 2 --ep 3": "--ep 3 with --tp 2",
    "learn --swap GQA(window=4)": "--swap changes the models that are named",
    "learn lama3": "did you mean llama3",
    "learn llama3 --swap GQA(windw=4)": "windw",
    "learn llama3 --tasks recal": "did you mean recall",
    "learn llama3 --tasks ,": "names no task",
    "learn llama3 --seeds 1": "2",
    "learn llama3 --tokens 0": "not a count above 0",
    "learn llama3 --tokens 3k": "less than two steps",
    "learn llama3 --params many": "write 200k",
    "learn llama3 --params 2k": "too few",
    "learn llama3 --rates fast": "write learning rates above 0",
    "learn llama3 --learning-rate -1": "above 0",
    "learn llama3 --learning-rate 1e-3 --rates 1e-3": "give either --rates for a sweep",
    "learn llama3 --match size": "params",
    "learn llama3 --text short.txt --context 64": "too few",
    "load": "SOURCE",
    "load saved --dtype int8": "int8 only stores values",
    "load saved --repeat 0": "--repeat",
}
NOT_AVAILABLE = {
    "--static --out no/such/folder/file": "no folder",
    "params ./nowhere": "there is no folder and no file ./nowhere",
    "blocks --dim 1048576": "a smaller --dim, --tokens or --context needs less",
    "blocks --variants mla ./nowhere": "there is no folder",
    "throughput no.gguf": "no.gguf",
    "learn llama3 --text nowhere": "nowhere",
    "load nowhere": "nowhere",
    "load saved --out /nowhere/x.json": "there is no folder",
}


@pytest.mark.usefixtures("_eight_families")
@pytest.mark.parametrize(("calls", "code"), [(USAGE, 2), (NOT_AVAILABLE, 3)], ids=["usage", "not available"])
def test_a_bad_call_is_one_line_and_its_code(
    calls: dict[str, str],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("a line\n" * 100, encoding="utf-8")
    weights.save(zoo.build("qwen3", tiny=True), tmp_path / "saved")
    for call, told in calls.items():
        assert exit_code(app, "python -m benchmarks", call.split()) == code, call
        out, err = capsys.readouterr()
        assert out == "", call
        assert told in err, call
        assert len(err.removesuffix(f"{SUMMARY}\n").splitlines()) == 1, call  # the grammar follows an invalid swap
