"""Mistral Small 4: in the multimodal model of Mistral Small 3.1; the config says which share of a head is rotated."""

from tests.families import Config, Family


def toy(config: Config, full: Config, layers: int) -> Config:
    """The share of the rotary part in a head of the toy's widths."""
    rotary, plain = config["qk_rope_head_dim"], config["qk_nope_head_dim"]
    return {"rope_scaling": config["rope_scaling"] | {"partial_rotary_factor": rotary / (rotary + plain)}}


FAMILY = Family(toy=toy, wrappers={"mistral4": "mistral3"})
