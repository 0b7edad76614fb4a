"""Ministral 3: the text model is published inside the multimodal model of Mistral Small 3.1."""

from tests.families import Family

FAMILY = Family(wrappers={"ministral3": "mistral3"})
