"""Importing every submodule leaves every public function callable."""

import subprocess
import sys

ALL_IMPORTED = """
import importlib, inspect, pkgutil, torch
import weights, zoo

found = ((package, name, value) for package in (zoo, weights) for name, value in vars(package).items())
public = {(m, name): value for m, name, value in found if inspect.isfunction(value) and not name.startswith("_")}
assert {("zoo", "build"), ("weights", "parity"), ("weights", "load")} <= {(m.__name__, name) for m, name in public}
for package in (zoo, weights):
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
for (package, name), function in public.items():
    assert callable(getattr(package, name)), name
    assert inspect.signature(getattr(package, name)) == inspect.signature(function), name
model = zoo.build("qwen3", tiny=True)
assert model(torch.tensor([[1, 2]])).shape == (1, 2, 512)
assert zoo.build.main and weights.parity.main  # still the modules of the commands
weights.save(model, "model")
assert torch.equal(weights.load("model").embed.weight, model.embed.weight)
assert weights.parity("model", tokens=8).passed
print("all called")
"""


def test_importing_every_submodule_hides_no_function(tmp_path: object) -> None:
    ran = subprocess.run([sys.executable, "-c", ALL_IMPORTED], cwd=str(tmp_path), capture_output=True, text=True)
    assert ran.stdout == "all called\n", ran.stderr
