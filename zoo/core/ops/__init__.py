"""Operations of blocks, one file each. Read `plain` first: it states the formula in a few lines.

Below it are faster implementations, for compiled code, gradients and devices. The public function chooses among them,
so that blocks need not know about compiling, devices or gradients. All equal `plain` (tests/zoo/core/ops).
"""
