"""Gemma 3: from 4B up, the text model is published inside a multimodal one."""

from tests.families import Family

FAMILY = Family(wrappers={"gemma3_text": "gemma3"})
