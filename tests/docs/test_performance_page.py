"""docs/performance.md: files are gathered by processor, and a section states each row's figures and the missed
targets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.measure.timing import PairedRatio
from docs.tools import performance
from docs.tools.performance import compared, gather, interval, misses, section, table
from zoo.errors import MalformedError

MACHINE = {
    "cpu": "A processor",
    "isa": ["avx2", "avx512f"],
    "cores": 2,
    "torch": "2.13.0",
    "blas": "A library",
    "device": "cpu",
    "gpu": None,
    "last_cache_bytes": 2**25,
    "commit": "0123456789",
    "kernels": {},
    "kernels_set": None,
}


def speed(implementation: str, mode: str, rate: float, **more: object) -> dict:
    """A row whose 8 tokens took equally long in each of two rounds."""
    row = {"table": "throughput", "model": "m", "dtype": "float32", "test": "tg8", "phase": "decode", "depth": 0}
    row |= {"implementation": implementation, "mode": mode, "tokens_per_s": rate, "seconds": [8 / rate, 8 / rate]}
    row |= {"ceiling_tokens_per_s": 40.0, "gemms_tokens_per_s": None, "experts_hit_predicted": None}
    return row | {"mbu": rate / 40, "threads": 2} | more


def measured(*rows: dict, **machine: object) -> dict:
    return {"schema_version": 2, "machine": MACHINE | machine, "complete": True, "rows": list(rows)}


def put(file: Path, content: object) -> Path:
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def test_documents_are_gathered_under_the_first_one(tmp_path: Path) -> None:
    tests = ("a", "b", "c", "d")
    rows = [speed("zoo", "eager", 1.0, test=test) for test in tests]
    files = [tmp_path / f"{n}.json" for n in range(2)]
    for n, file in enumerate(files):
        put(file, measured(*rows[2 * n : 2 * n + 2], commit=f"c{n}", kernels={f"k{n}": "plain"}))
    assert gather(files) == measured(*rows, commit="c0", kernels={"k0": "plain", "k1": "plain"})
    put(files[1], measured(*rows[2:]) | {"complete": False})
    assert gather(files)["complete"] is False


def test_a_test_that_was_measured_again_is_the_last_files(tmp_path: Path) -> None:
    """The last file's rows replace all earlier rows of the test, since rounds of different runs do not form pairs."""
    ceiling = {"table": "ceilings", "kind": "bandwidth"}
    first = measured(speed("zoo", "eager", 1.0), speed("transformers", "sdpa", 2.0), ceiling)
    again = measured(speed("zoo", "eager", 3.0), ceiling)
    found = gather([put(tmp_path / "0.json", first), put(tmp_path / "1.json", again)])
    assert found["rows"] == [ceiling, *again["rows"]]


@pytest.mark.parametrize("other", [{"cpu": "Another"}, {"isa": ["avx2"]}, {"kernels_set": "plain"}])
def test_documents_of_two_processors_are_not_gathered(other: dict, tmp_path: Path) -> None:
    files = [put(tmp_path / "0.json", measured()), put(tmp_path / "1.json", measured(**other))]
    with pytest.raises(MalformedError, match=f"1.json: {next(iter(other))} is "):
        gather(files)


def test_documents_are_kept_as_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(performance, "FOLDER", tmp_path)
    performance.keep("a-1", [put(tmp_path / "one.txt", measured(speed("zoo", "eager", 20.0)))])
    assert json.loads((tmp_path / "a-1.json").read_text(encoding="utf-8"))["rows"] == [speed("zoo", "eager", 20.0)]
    assert list(performance.sections()) == ["a-1"]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_says_what_was_reached_and_what_could_have_been() -> None:
    rows = [
        speed("zoo", "eager", 10.0),
        speed("zoo", "compiled", 30.0),
        speed("transformers", "compiled", 99.0),
        speed("transformers", "sdpa", 10.0),
        speed("zoo", "eager", 90.0, test="pp8", phase="prefill", gemms_tokens_per_s=100.0),
    ]
    head, _, decode, prefill = table(compared({"rows": rows})).splitlines()
    assert cells(head)[3:] == [
        *("transformers tokens/s", "zoo eager tokens/s", "vs transformers", "compiled tokens/s", "vs transformers"),
        *("max speedup", "% of bandwidth", "% of GEMMs alone"),
    ]
    assert cells(decode) == [
        *("m", "float32", "tg8", "10", "10", "1.00 (1.00 to 1.00)", "30", "3.00 (3.00 to 3.00)", "4.00", "75%", "")
    ]
    assert cells(prefill) == ["m", "float32", "pp8", "", "90", "", "", "", "", "", "90%"]


def test_an_interval_is_of_the_rounds_that_both_took_part_in() -> None:
    rows = [speed("zoo", "eager", 1.0, seconds=[1.0, 1.0]), speed("transformers", "sdpa", 1.0, seconds=[2.0, 2.0, 9.0])]
    assert compared({"rows": rows})[0]["eager_ratio"] == pytest.approx((2.0, 2.0, 2.0))
    assert interval(PairedRatio(1.934, 1.882, 1.988)) == "1.93 (1.88 to 1.99)"
    single = [speed("zoo", "eager", 1.0, seconds=[1.0]), speed("transformers", "sdpa", 1.0, seconds=[2.0])]
    assert "2.00 (one round)" in table(compared({"rows": single}))


DECODE = {"phase": "decode", "depth": 512, "dense": True, "dtype": "float32", "bandwidth": 0.9, "gemms": None}
PREFILL = {"phase": "prefill", "depth": 0, "dense": True, "dtype": "float32", "bandwidth": None, "gemms": 0.9}
TRAIN = {"phase": "train", "depth": 0, "dense": True, "dtype": "float32", "bandwidth": None, "gemms": None}
SLOW, EVEN, FAST = PairedRatio(0.9, 0.8, 0.99), PairedRatio(0.97, 0.9, 1.0), PairedRatio(2.5, 2.4, 2.6)
ALMOST = PairedRatio(1.9, 1.8, 2.1)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (DECODE, []),
        (DECODE | {"eager_ratio": EVEN}, []),  # its interval reaches 1.0
        (DECODE | {"eager_ratio": SLOW}, ["eager is 0.900 (0.800 to 0.990) times"]),
        (PREFILL | {"eager_ratio": SLOW}, ["eager is 0.900"]),
        (DECODE | {"bandwidth": 0.85}, []),
        (DECODE | {"bandwidth": 0.849}, ["reads at 84.9% of the bandwidth; the target is 85%"]),
        (DECODE | {"bandwidth": 0.849, "dense": False}, []),
        (DECODE | {"bandwidth": 0.849, "depth": 4096}, []),
        (DECODE | {"bandwidth": 0.75, "dtype": "bfloat16"}, []),
        (DECODE | {"bandwidth": 0.74, "dtype": "bfloat16", "dense": False}, ["reads at 74.0%", "the target is 75%"]),
        (DECODE | {"bandwidth": 0.1, "dtype": "float16"}, []),
        (DECODE | {"compiled_ratio": ALMOST}, ["compiled decode is 1.90 (1.80 to 2.10) times", "max speedup of 3.00"]),
        (DECODE | {"compiled_ratio": ALMOST, "max_speedup": 2.3}, ["the target is 2.0"]),
        (DECODE | {"compiled_ratio": ALMOST, "max_speedup": 2.29}, []),
        (DECODE | {"compiled_ratio": None, "max_speedup": None, "eager_ratio": None}, []),
        (DECODE | {"compiled": None, "compiled_ratio": None, "bandwidth": 0.1}, []),
        (PREFILL | {"compiled_ratio": EVEN}, ["compiled prefill is 0.970", "and runs at 90.0% of its GEMMs alone"]),
        (PREFILL | {"compiled_ratio": EVEN, "gemms": 0.95}, []),
        (PREFILL | {"compiled_ratio": EVEN, "gemms": None}, ["compiled prefill is 0.970"]),
        (PREFILL | {"compiled_ratio": PairedRatio(1.05, 1.0, 1.1)}, []),
        (TRAIN | {"compiled_ratio": SLOW}, ["compiled training is 0.900 (0.800 to 0.990) times"]),
        (TRAIN | {"compiled_ratio": EVEN}, []),
    ],
)
def test_a_target_that_is_missed_is_told_with_its_numbers(changed: dict, told: list[str]) -> None:
    test = {"model": "m", "test": "t", "compiled": 1.0, "eager_ratio": FAST, "compiled_ratio": FAST, "max_speedup": 3.0}
    found = list(misses(test | changed))
    assert len(found) == bool(told)
    for part in told:
        assert part in found[0]


def test_a_section_names_the_processor_its_kernels_and_its_samples() -> None:
    rows = [speed("zoo", "compiled", 30.0, depth=512), speed("transformers", "sdpa", 20.0)]
    chosen = MACHINE | {"kernels": {"linear prefill, float32": "onednn"}}
    text = section("a-1", {"machine": chosen, "rows": rows})
    assert text.startswith("## A processor, AVX-512\n\n- Processor: A processor, 2 cores, last cache 32 MiB\n")
    for fact in ("ISA: avx2 avx512f", "Threads: 2", "torch 2.13.0 with A library", "commit 0123456"):
        assert f"{fact}\n" in text
    assert "- Kernels: linear prefill float32: onednn\n" in text
    assert "[performance/a-1.json](performance/a-1.json)" in text
    assert "Below the targets:\n\n- m, float32, tg8: compiled decode reads at 75.0%" in text
    sve = section("a-1", {"machine": MACHINE | {"isa": ["sve"]}, "rows": []})
    assert sve.startswith("## A processor, SVE\n")
    assert sve.endswith("None of these rows is below a target.")
