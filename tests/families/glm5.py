"""GLM-5: DeepSeek-V3.2's toy sizes."""

from tests.families.deepseek_v3_2 import FAMILY as FAMILY
