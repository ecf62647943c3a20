"""Model families: one file each. Importing this package registers them all."""

from mindrlhf.models import llama, qwen2
from mindrlhf.models.family import BuildOptions, ModelFamily, families, family_of, get_family

__all__ = ["BuildOptions", "ModelFamily", "families", "family_of", "get_family", "llama", "qwen2"]
