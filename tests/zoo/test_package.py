"""Names of the package that are found on access, and its version."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import weights
import zoo

ROOT = Path(__file__).parents[2]


def test_load_is_the_function_of_weights_and_is_imported_on_access() -> None:
    assert zoo.load is weights.load
    assert "load" in dir(zoo)
    code = "import sys, zoo; assert 'weights' not in sys.modules; zoo.load; assert 'weights' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_version_is_the_packages() -> None:
    """Written once, in zoo/__init__.py."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"]
    source = (ROOT / project["tool"]["hatch"]["version"]["path"]).read_text(encoding="utf-8")
    assert re.findall(r'^__version__ = "(.*)"', source, re.MULTILINE) == [zoo.__version__]
