"""Mistral Small 3.1: the text model is published inside a multimodal one."""

from tests.families import Family

FAMILY = Family(wrappers={"mistral": "mistral3"})
