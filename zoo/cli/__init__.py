"""What the command lines share: running, tables, devices, and the parts of python -m zoo.build."""
