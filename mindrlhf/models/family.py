"""The contract between model and algorithm: a family is met as an object, never as a class name in an `if`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mindrlhf.runtime.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from mindspore import Parameter, nn

    Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class BuildOptions:
    """What a run adds to a model's shapes.

    seq_length: S, tokens of a row. compute_dtype, param_dtype: names such as "float32". fused: the Ascend kernels
    (flash attention, RmsNorm) instead of the plain ones. The rest is the parallel layout.
    """

    seq_length: int
    compute_dtype: str = "float32"
    param_dtype: str = "float32"
    fused: bool = False
    data_parallel: int = 1
    model_parallel: int = 1
    pipeline_stage: int = 1
    micro_batch_num: int = 1
    optimizer_shard: bool = False
    vocab_emb_dp: bool = True


class ModelFamily(ABC):
    """One architecture: how it is built, called, and named in Hugging Face's and in MindFormers' words.

    A subclass lives in one file and ends in `register(...)`.
    """

    name: ClassVar[str]
    architectures: ClassVar[tuple[str, ...]]  # of config.json
    collations: ClassVar[tuple[str, ...]] = ("padded",)  # those that are exact for it
    config_keys: ClassVar[frozenset[str]]  # of config.json, that mean something here

    @abstractmethod
    def from_hf_config(self, hf_config: Mapping[str, Any], options: BuildOptions) -> dict[str, Any]:
        """MindFormers' model_config for a Hugging Face `config.json`; UserError for what would run wrongly."""

    @abstractmethod
    def mindformers_keys(self) -> frozenset[str]:
        """Words of MindFormers' own config of this model, which a yaml of theirs may carry."""

    @abstractmethod
    def build(self, config: Any) -> nn.Cell:
        """The MindFormers model of a MindFormers config (a dict from `from_hf_config`, or a config object)."""

    @abstractmethod
    def backbone(self, model: nn.Cell) -> nn.Cell:
        """A cell (input_ids (R,S) int32, position_ids (R,S) int32, forbidden (R,1,S,S) uint8) -> hidden (R,S,H).

        `forbidden` is 1 where a query must not see a key. It is a cell and not a function because its operators
        carry layouts.
        """

    @abstractmethod
    def head_weight(self, model: nn.Cell) -> Parameter:
        """The (V,H) matrix whose product with a hidden state gives the logits."""

    @abstractmethod
    def hf_to_ms(self, arrays: Arrays, tied: bool = False) -> Arrays:
        """Tensors under Hugging Face names as tensors under MindFormers names."""

    @abstractmethod
    def ms_to_hf(self, arrays: Arrays) -> Arrays:
        """The inverse of `hf_to_ms`."""


_FAMILIES: dict[str, ModelFamily] = {}


def register(family: ModelFamily) -> ModelFamily:
    """Add a family to the registry; two of one name are a mistake in the code."""
    if family.name in _FAMILIES:
        raise ValueError(f"two model families are called {family.name!r}")
    _FAMILIES[family.name] = family
    return family


def families() -> dict[str, ModelFamily]:
    """All registered families by name."""
    return dict(_FAMILIES)


def get_family(name: str) -> ModelFamily:
    """The family of that name; UserError names those there are."""
    if name not in _FAMILIES:
        raise UserError(f"model.family is {name!r}; this version knows {', '.join(sorted(_FAMILIES))}")
    return _FAMILIES[name]


def family_of(hf_config: Mapping[str, Any], source: str) -> ModelFamily:
    """The family of a `config.json`, by its `architectures`; `source` names the file in the error."""
    names = list(hf_config.get("architectures") or [])
    for family in _FAMILIES.values():
        if set(names) & set(family.architectures):
            return family
    known = sorted(name for family in _FAMILIES.values() for name in family.architectures)
    raise UserError(
        f"{source}: architecture {', '.join(names) or 'missing'} is not supported; known: {', '.join(known)}"
    )
