"""Writes the shapes of tests/data/estimates: those of the reference's modules, which it builds on the meta device.

The configs and the arithmetic in those files are written by hand.

    python -m tests.data.make_estimates
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

FOLDER = Path(__file__).parent / "estimates"


def main() -> None:
    for file in sorted(FOLDER.glob("*.json")):
        said = json.loads(file.read_text(encoding="utf-8"))
        kind = CONFIG_MAPPING[said["config"]["model_type"]]
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(kind(**said["config"]))
        grouped: dict[str, list[tuple[int, list[int]]]] = {}
        for name, tensor in model.state_dict().items():
            index = re.search(r"\.(\d+)\.", name)
            pattern = name if index is None else name.replace(index[0], ".{i}.", 1)
            grouped.setdefault(pattern, []).append((int(index[1]) if index else -1, list(tensor.shape)))
        said["shapes"] = {
            pattern: {"layers": [i for i, _ in held], "shape": held[0][1]} for pattern, held in grouped.items()
        }
        text = json.dumps(said, indent=1)
        text = re.sub(
            r"\[[^][{}]*\]", lambda values: " ".join(values[0].split()).replace("[ ", "[").replace(" ]", "]"), text
        )
        file.write_text(
            re.sub(r"\{\s+(\"layers\": \[[^]]*\]),\s+(\"shape\": \[[^]]*\])\s+\}", r"{\1, \2}", text) + "\n"
        )


if __name__ == "__main__":
    main()
