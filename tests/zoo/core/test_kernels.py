"""The kernels of a process: set by a file, by the environment or by the caller; operations without a decision are
plain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.ranks import command, in_process
from zoo.core import kernels
from zoo.core.kernels import OPERATIONS, PLAIN
from zoo.errors import MalformedError, NotAvailable

LINEAR, ATTENTION = ("linear prefill", torch.float32), ("attention prefill", torch.bfloat16)
ALL = [(name, dtype) for name, operation in OPERATIONS.items() for dtype in operation.dtypes]


def test_without_a_decision_every_operation_is_plain() -> None:
    with kernels.using(None) as active:
        assert not any(kernels.is_replaced(*each) for each in ALL)
        assert {active.kernel(*each) for each in ALL} == {PLAIN}
        assert kernels.choices() == {}
        active.add({LINEAR: "onednn", ATTENTION: PLAIN})
        assert [each for each in ALL if kernels.is_replaced(*each)] == [LINEAR]
        assert kernels.choices() == {"attention prefill, bfloat16": PLAIN, "linear prefill, float32": "onednn"}


@pytest.mark.parametrize("setting", [PLAIN, {}, {"linear prefill": PLAIN}])
def test_plain_settings_replace_nothing(setting: str | dict[str, str]) -> None:
    with kernels.using(setting) as active:
        assert active.is_set
        assert not any(kernels.is_replaced(*each) for each in ALL)


def test_an_operation_is_set_in_all_its_dtypes_or_in_one() -> None:
    with kernels.using({"attention prefill, bfloat16": PLAIN, "attention prefill": "blocks"}):
        replaced = [each for each in ALL if kernels.is_replaced(*each)]
    dtypes = torch.float64, torch.float32, torch.float16
    assert replaced == [("attention prefill", dtype) for dtype in dtypes]


def test_kernels_are_saved_and_set(tmp_path: Path) -> None:
    file = tmp_path / "kernels.json"
    with kernels.using({kernels.name(each): OPERATIONS[each[0]].kernel for each in ALL}):
        kernels.save(file)
        expected = kernels.choices()
    with kernels.using(file) as active:
        assert active.is_set
        assert kernels.choices() == expected
        assert len(expected) == len(ALL)
    with pytest.raises(NotAvailable, match="cannot be written"):
        kernels.save(file / "below")


CLASSES = {"linear, float32, rows 1, weights 1048576, threads 2": "onednn"}  # as they were written once


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "not JSON"),
        ([], "schema_version 2"),
        ({"schema_version": 3, "kernels": {}}, "schema_version 2"),
        ({"schema_version": 2, "kernels": []}, "schema_version 2"),
        ({"schema_version": 2, "kernels": CLASSES}, "did you mean linear"),
        ({"schema_version": 2, "kernels": {"lineer prefill": "onednn"}}, "did you mean linear prefill"),
        ({"schema_version": 2, "kernels": {"linear prefill, bfloat16": "onednn"}}, "unknown dtype of linear prefill"),
        ({"schema_version": 2, "kernels": {"linear prefill": "mkl"}}, "known: onednn, plain"),
        ({"schema_version": 2, "kernels": {"linear prefill": None}}, "unknown kernel of linear prefill"),
    ],
)
def test_a_malformed_file_is_refused(document: object, message: str, tmp_path: Path) -> None:
    file = tmp_path / "kernels.json"
    file.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    with pytest.raises(MalformedError, match=message), kernels.using(file):
        pass


def test_a_missing_file_is_named() -> None:
    with (
        pytest.raises(NotAvailable, match=r"ZOO_KERNELS=none\.json: neither 'plain' nor a file"),
        kernels.using("none.json"),
    ):
        pass


def set_kernels() -> tuple[bool, dict[str, str]]:
    return kernels.active().is_set, kernels.choices()


def test_the_environment_sets_the_kernels(tmp_path: Path) -> None:
    file = tmp_path / "kernels.json"
    file.write_text(json.dumps({"schema_version": 2, "kernels": {"linear decode": "onednn"}}), encoding="utf-8")
    for setting, expected in (
        (str(file), (True, {"linear decode, float32": "onednn"})),
        ("plain", (True, {})),
        ("", (False, {})),
    ):
        assert in_process(set_kernels, environment={"ZOO_KERNELS": setting}) == expected


def test_a_wrong_setting_is_a_one_line_error_with_an_exit_code() -> None:
    environment = {"ZOO_KERNELS": "nowhere.json"}
    code, _, err = in_process(command, "zoo.build", "qwen3", "--tiny", environment=environment)
    assert code == 3
    assert err.startswith("error: ZOO_KERNELS=nowhere.json")
