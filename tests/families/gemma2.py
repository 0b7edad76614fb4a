"""Gemma 2: toy scores and toy logits feel their caps."""

from tests.families import Family

FAMILY = Family(widths={"attn_logit_softcapping": 1.0, "final_logit_softcapping": 8.0})
