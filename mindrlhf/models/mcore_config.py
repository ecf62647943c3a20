"""The config object that MindFormers makes of a model_config whose type is McoreConfig."""

from __future__ import annotations

from typing import Any

from mindformers.models.configuration_utils import PretrainedConfig
from mindformers.tools.register import MindFormerConfig, MindFormerModuleType, MindFormerRegister


@MindFormerRegister.register(MindFormerModuleType.CONFIG)
class McoreConfig(PretrainedConfig):
    """The words of `McoreFamily.from_hf_config` as attributes. MindFormers' own such classes know one model each."""

    def __init__(self, parallel_config: Any = None, **words: Any) -> None:
        super().__init__(**words)
        self.parallel_config = MindFormerConfig(**(parallel_config or {}))
