"""Model families: one file each. Importing this package registers them all."""

from mindrlhf.models import baichuan2, glm4, llama, qwen2, qwen3, qwen3_moe
from mindrlhf.models.family import BuildOptions, ModelFamily, chosen_family, families, family_of, get_family

__all__ = [
    "BuildOptions",
    "ModelFamily",
    "baichuan2",
    "chosen_family",
    "families",
    "family_of",
    "get_family",
    "glm4",
    "llama",
    "qwen2",
    "qwen3",
    "qwen3_moe",
]
