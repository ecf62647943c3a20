"""The contract between model and algorithm: a family is met as an object, never as a class name in an `if`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, ClassVar

from mindrlhf.models.hf_config import need, whole
from mindrlhf.models.hf_weights import Group, are_ms, faults, to_hf, to_ms
from mindrlhf.parallel.layout import ONE_WORKER, Layout, ModelShape
from mindrlhf.parallel.parameters import Traits
from mindrlhf.runtime.errors import IncompleteCheckpoint, Shapes, UserError

if TYPE_CHECKING:
    import numpy as np
    from mindspore import nn

    Arrays = dict[str, np.ndarray]


TINY_HEAD = 32  # head size of tiny models


@dataclass(frozen=True)
class BuildOptions:
    """What a run adds to a model's shapes.

    seq_length: S, tokens of a row. compute_dtype, param_dtype: names such as "float32". fused: the Ascend kernels
    (flash attention, RmsNorm) instead of the plain ones. aux_loss_coef: weight of a router's load-balance loss, None as
    config.json says. rope_by_product: rotary swaps halves by a product with a matrix, 4-D by 2-D.
    recompute: of a layer only its input is kept for the backward pass. layout: how the model
    is spread.
    """

    seq_length: int
    compute_dtype: str = "float32"
    param_dtype: str = "float32"
    fused: bool = False
    rope_by_product: bool = False
    recompute: bool = False
    aux_loss_coef: float | None = None
    layout: Layout = ONE_WORKER


class ModelFamily(ABC):
    """One architecture: how it is built, called, and named in Hugging Face's and in MindFormers' words.

    A subclass lives in one file and ends in `register(...)`.
    """

    name: ClassVar[str]
    architectures: ClassVar[tuple[str, ...]]  # of config.json
    collations: ClassVar[tuple[str, ...]] = ("padded",)  # those that are exact for it
    config_keys: ClassVar[frozenset[str]]  # of config.json, that mean something here
    lora_targets: ClassVar[tuple[str, ...]] = ()  # leaf cells of MindFormers' model: every linear layer but the head
    template: ClassVar[str] = "chatml"  # the built-in chat template of its published models
    routed: ClassVar[bool] = False  # whether tokens are routed to experts
    tokenizer_kind: ClassVar[str] = "bpe"  # or sentencepiece, tiktoken: what its published tokenizer is
    tiny_variants: ClassVar[Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {}  # of tiny_config, by name

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
    def head(self, model: nn.Cell) -> nn.Cell:
        """A cell () -> the (V,H) matrix whose product with a hidden state gives the logits."""

    @abstractmethod
    def tensors(self, hf_config: Mapping[str, Any]) -> Iterable[Group]:
        """Every tensor of a checkpoint of this config, in Hugging Face's words and in MindFormers'."""

    @abstractmethod
    def tiny_config(self, vocab_size: int, hidden_size: int, layers: int) -> dict[str, Any]:
        """config.json of a small model, with the keys that published checkpoints carry; head size TINY_HEAD."""

    def shape(self, hf_config: Mapping[str, Any]) -> ModelShape:
        """The sizes that a layout divides."""
        heads, hidden = need(hf_config, "num_attention_heads"), need(hf_config, "hidden_size")
        return ModelShape(
            layers=need(hf_config, "num_hidden_layers"),
            hidden=hidden,
            heads=heads,
            kv_heads=whole(hf_config, "num_key_value_heads", heads),
            head_dim=whole(hf_config, "head_dim", hidden // heads),
            intermediate=need(hf_config, "intermediate_size"),
            vocab=need(hf_config, "vocab_size"),
            tied=is_tied(hf_config),
        )

    def traits(self, hf_config: Mapping[str, Any]) -> Traits:
        """What it adds to these sizes, told by the names of its tensors."""
        names = [name for group in self.tensors(hf_config) for name in (*group.hf, *group.ms)]
        return Traits(
            qkv_bias=any(name.endswith(".bias") for name in names),
            qk_norm=any(name.endswith(".q_norm.weight") for name in names),
            fused=any(name.endswith(".linear_qkv.weight") for name in names),
        )

    def constants(self, hf_config: Mapping[str, Any]) -> Arrays:
        """What a published checkpoint holds beside its weights and config.json tells: float64 by Hugging Face name."""
        return {}

    def ignored(self, name: str, hf_config: Mapping[str, Any]) -> bool:
        """Whether a tensor of that Hugging Face name may lie in a checkpoint and mean nothing.

        Rotary tables, and the head where it is the embedding.
        """
        return name.endswith("inv_freq") or (name == "lm_head.weight" and is_tied(hf_config))

    def hf_to_ms(self, arrays: Arrays, hf_config: Mapping[str, Any]) -> Arrays:
        """Tensors under Hugging Face names as tensors under MindFormers names; UserError where they do not fit.

        Tensors that have MindFormers names already are returned as they are.
        """
        self.check({name: array.shape for name, array in arrays.items()}, hf_config)
        groups = list(self.tensors(hf_config))
        return arrays if are_ms(groups, arrays) else to_ms(groups, arrays)

    def check(self, shapes: Shapes, hf_config: Mapping[str, Any]) -> None:
        """UserError where tensors of these Hugging Face names and shapes are not those of the config.

        Tensors that have MindFormers names pass: the model itself tells of them.
        """
        groups = list(self.tensors(hf_config))
        if are_ms(groups, shapes):
            return
        wrong = faults(groups, shapes, lambda name: self.ignored(name, hf_config))
        if wrong:
            raise IncompleteCheckpoint("; ".join(wrong))

    def ms_to_hf(self, arrays: Arrays, hf_config: Mapping[str, Any]) -> Arrays:
        """The inverse of `hf_to_ms`; of gradients, which may be some of the tensors, too."""
        return to_hf(self.tensors(hf_config), arrays)


def is_tied(hf_config: Mapping[str, Any]) -> bool:
    """Whether the head is the embedding; UserError where config.json says neither true nor false."""
    tied = hf_config.get("tie_word_embeddings") or False
    if not isinstance(tied, bool):
        raise UserError(f"config.json: tie_word_embeddings is {tied!r}; it must be true or false")
    return tied


def recompute_layers(layers: Iterable[nn.Cell], optimizer_shard: bool) -> None:
    """Let the backward pass compute again what lies between the inputs of these layers.

    Where weights are gathered from the workers that share them, they are gathered again and not kept.
    """
    for layer in layers:
        layer.recompute(parallel_optimizer_comm_recompute=optimizer_shard)


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
    names = _architectures(hf_config)
    for family in _FAMILIES.values():
        if set(names) & set(family.architectures):
            return family
    known = sorted(name for family in _FAMILIES.values() for name in family.architectures)
    raise UserError(
        f"{source}: architecture {', '.join(names) or 'missing'} is not supported; known: {', '.join(known)}"
    )


def chosen_family(name: str, hf_config: Mapping[str, Any], source: str, said: str) -> ModelFamily:
    """The family that is named, which must be that of `architectures` where config.json has them.

    said: the words by which the user named it, for the error.
    """
    family = get_family(name)
    if _architectures(hf_config):
        found = family_of(hf_config, source)
        if found is not family:
            raise UserError(f"{said} is the family {name}, and {source} is one of {found.name}")
    return family


def _architectures(hf_config: Mapping[str, Any]) -> list[str]:
    given = hf_config.get("architectures") or []
    return [given] if isinstance(given, str) else [str(name) for name in given]
