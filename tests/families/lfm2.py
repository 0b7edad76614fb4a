"""LFM2: its rule makes the toy width of the feed-forward what it is, and some fields say others again."""

from __future__ import annotations

from tests.families import Config, Family

WIDTHS = {"block_dim": 64, "conv_dim": 64, "conv_dim_out": 64, "num_heads": 4}


def toy(config: Config, full: Config, layers: int) -> Config:
    """The layers with attention, where they are listed by number."""
    return {"full_attn_idxs": [i for i in full["full_attn_idxs"] if i < layers]} if "full_attn_idxs" in full else {}


FAMILY = Family(widths=WIDTHS | {"block_multiple_of": 96}, names={"rms_norm_eps": "norm_eps"}, toy=toy)
