"""Published sets of preferences by their usual names: their format, and where to get them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KnownSet:
    """Its dataset type and the page it is published on."""

    dataset_type: str
    page: str


KNOWN_SETS = {
    "hh-rlhf-cn": KnownSet("hh_rlhf_cn", "https://modelscope.cn/datasets/AI-ModelScope/hh_rlhf_cn"),
    "hh-rlhf": KnownSet("hh_rlhf", "https://huggingface.co/datasets/Anthropic/hh-rlhf"),
    "cvalues": KnownSet("cvalues", "https://modelscope.cn/datasets/iic/CValues-Comparison"),
    "orca-dpo-pairs": KnownSet("orca_dpo_pairs", "https://huggingface.co/datasets/Intel/orca_dpo_pairs"),
    "dpo-en-zh-20k": KnownSet("sharegpt", "https://huggingface.co/datasets/hiyouga/DPO-En-Zh-20k"),
    "ultrafeedback-binarized": KnownSet(
        "messages", "https://huggingface.co/datasets/HuggingFaceH4/ultrafeedback_binarized"
    ),
}
