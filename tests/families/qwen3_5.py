"""Qwen3.5: sizes of its linear layers; the text model is published inside a multimodal one."""

from dataclasses import replace

from tests.families.qwen3_next import FAMILY as QWEN3_NEXT

FAMILY = replace(QWEN3_NEXT, wrappers={"qwen3_5_text": "qwen3_5", "qwen3_5_moe_text": "qwen3_5_moe"})
