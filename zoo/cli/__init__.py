"""What command lines share (errors and exit codes, interrupts, tables), and the output of python -m zoo.build."""
