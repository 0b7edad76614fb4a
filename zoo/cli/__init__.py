"""Shared parts of the command lines (errors and exit codes, interrupts, tables), and the output of `python -m
zoo.build`."""
