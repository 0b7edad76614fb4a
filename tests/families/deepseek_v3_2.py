"""DeepSeek-V3.2: a toy's indexer chooses fewer tokens than a test has, and by enough heads that few scores are ties."""

from tests.families import Family

INDEX = {"index_n_heads": 16, "index_head_dim": 24, "index_topk": 24}
FAMILY = Family(widths=INDEX)
