"""Selects the published sizes for a table of all models: one per family, or sizes by release month and by blocks."""

from collections.abc import Sequence

from zoo.architectures import families
from zoo.catalog import best_known, folded, resolve, sizes
from zoo.cli.listing import used_names
from zoo.errors import UsageError, enough, suggestion

FEW = 3  # maximum number of names in an error
Found = dict[str, list[str]]  # family -> some of its sizes


def matching(since: str | None = None, blocks: Sequence[str] = ()) -> Found:
    """Returns the sizes that were released in the month `since` or later and use all of `blocks`.

    A block is a name from the table of `zoo.build --list` or its first words ("QK-norm"), in lower or upper case.
    Families and sizes keep the order of the catalog. Raises UsageError if no size matches.
    """
    fulfil = {block: _using(block) for block in blocks}
    if since is not None:
        fulfil[f"since {since}"] = _released(since)
    found = {
        family: [name for name in module.SIZES if all(name in names for names in fulfil.values())]
        for family, module in families().items()
    }
    if not any(found.values()):
        each = "; ".join(f"{condition}: {enough(names, FEW)}" for condition, names in fulfil.items())
        raise UsageError(f"no published size meets all conditions: {each}")
    return {family: names for family, names in found.items() if names}


def _using(block: str) -> list[str]:
    """Returns the sizes that use a block. Raises UsageError, with the nearest names in use, if no size uses it."""
    word, used = folded(block.strip()), {name: used_names(size.spec) for name, size in sizes().items()}
    found = [name for name, each in used.items() if any(f"{folded(one)} ".startswith(f"{word} ") for one in each)]
    if not found:
        raise UsageError(f"no published size has {block[:80]!r}; {suggestion(block, set().union(*used.values()))}")
    return found


def _released(since: str) -> list[str]:
    """Returns the sizes released in a month or later. Raises UsageError, with the latest sizes, if there are none."""
    months = {name: size.released for name, size in sizes().items()}
    found = [name for name, month in months.items() if month >= since]
    if not found:
        latest = max(months.values())
        names = enough((name for name, month in months.items() if month == latest), FEW)
        raise UsageError(f"no published size was released in {since} or later; the latest are from {latest}: {names}")
    return found


def every_size(found: Found) -> list[str]:
    """Returns all sizes that were found."""
    return [name for names in found.values() for name in names]


def one_each(found: Found) -> list[str]:
    """Returns one size of each family, in order of release: the best-known one, or the first found."""
    shown = [best_known(family) if best_known(family) in names else names[0] for family, names in found.items()]
    return sorted(shown, key=lambda name: sizes()[name].released)


def smallest_each(found: Found) -> list[str]:
    """Returns one name for each family, for measurements: the family's name, which means its smallest size.

    If the smallest size was not found, the name is that of the smallest size found.
    """

    def params(name: str) -> int:
        return sizes()[name].params

    smallest = {family: min(names, key=params) for family, names in found.items()}
    return [family if name == resolve(family) else name for family, name in smallest.items()]
