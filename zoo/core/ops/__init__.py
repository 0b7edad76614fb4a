"""Operations of blocks, one file each. Read `plain` first: it states the formula in a few lines.

Below it are the forms that compile, that have gradients and that are fast. The public function chooses among them, so
that a block asks nothing about compiling, devices or gradients. Each form equals `plain` (tests/zoo/core/ops).
"""
