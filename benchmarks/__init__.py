"""The costs of each architecture, in tables: formulas from the specs, and measurements on this machine."""

import sys

if sys.argv[:1] == ["-m"]:  # `python -m benchmarks`; the command `zoo` imports this package before it knows the verb
    from zoo.cli import interrupt  # noqa: F401 - before torch, so that Ctrl-C works while torch is imported
