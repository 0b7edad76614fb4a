"""Formats and parses counts, bytes, months and dtypes."""

import re

COUNT = re.compile(r"(\d+(?:\.\d+)?)([kmgb]?)", re.IGNORECASE)
MONTH = re.compile(r"(?:19|20)[0-9]{2}-(?:0[1-9]|1[0-2])")
TOKENS = re.compile(r"(\d+(?:\.\d+)?)([km]?)")
FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}


def format_count(number: float) -> str:
    """Formats a count in three digits: 671B, 8.03B, 268M, 12."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= unit:
            return three_digits(number / unit) + name
    return three_digits(number)


def parse_count(text: str) -> int:
    """Parses a count: 200k, 1M, 1.5G or 1.5B, 2_000_000. Raises ValueError for other text and for counts below 1."""
    match = COUNT.fullmatch(text.strip().replace("_", "").replace(",", ""))
    count = round(float(match[1]) * FACTORS[match[2].lower()]) if match else 0
    if count < 1:
        raise ValueError(f"{text[:80]!r} is not a count above 0; write 200k, 1M or 4096")
    return count


def parse_tokens(text: str) -> int:
    """Parses a number of tokens: 0, 4096, 32k, 1M; k is 1,024 here. Raises ValueError for other text."""
    match = TOKENS.fullmatch(text.strip().lower().replace("_", "").replace(",", ""))
    number = float(match[1]) * {"": 1, "k": 2**10, "m": 2**20}[match[2]] if match else 0.5
    if number != int(number):
        raise ValueError(f"{text[:80]!r} is not a number of tokens; write 4096 or 4k")
    return int(number)


def parse_month(text: str) -> str:
    """Parses a year and a month: 2025-06. As text, months sort by time. Raises ValueError for other text."""
    if not MONTH.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is not a month; write 2025-06")
    return text


def format_bytes(nbytes: float) -> str:
    """Formats bytes in binary units: 16.0 GiB, 416 MiB, 0 B."""
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(nbytes) >= unit:
            return f"{three_digits(nbytes / unit)} {name}"
    return f"{nbytes:.0f} B"


def three_digits(number: float) -> str:
    """Formats a number with three digits, or without decimals if it is whole: 671, 12.3, 8, 8.03."""
    digits = 0 if number >= 100 or number == int(number) else 1 if number >= 10 else 2
    return f"{number:.{digits}f}"


def dtype_name(dtype: object) -> str:
    """Returns a torch dtype's name: float32, bfloat16, ..."""
    return str(dtype).removeprefix("torch.")
