"""Decoding on a small model: the same tokens as one forward pass after the other, in a batch and alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from mindrlhf.cells.scoring import SegmentMask
from mindrlhf.checkpoint.store import load_parameters
from mindrlhf.generation.generate import generate, row_length
from mindrlhf.generation.sampling import pick
from mindrlhf.models import BuildOptions, ModelFamily, get_family

LENGTH, NEW = 64, 10
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [27], [0, 18, 28]]
SHAPES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


@dataclass(frozen=True)
class Built:
    """A model whose greedy answers vary."""

    family: ModelFamily
    model: nn.Cell

    def answers(self, prompts: list[list[int]], stop_ids: tuple[int, ...] = (), **more: object) -> list[list[int]]:
        return generate(self.family, self.model, prompts, NEW, stop_ids, pick, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def built(cpu: object) -> Built:
    family = get_family("qwen2")
    model = family.build(family.from_hf_config(SHAPES, BuildOptions(seq_length=LENGTH))).set_train(False)
    generator = np.random.default_rng(4)
    parameters = {parameter.name: parameter for parameter in model.get_parameters()}
    arrays = {name: generator.normal(0.0, 0.5, each.shape).astype("f4") for name, each in parameters.items()}
    load_parameters(parameters, arrays, "random")
    return Built(family, model)


@pytest.fixture(scope="module")
def greedy(built: Built) -> list[list[int]]:
    return built.answers(PROMPTS)


class Logits(nn.Cell):
    """(input_ids, position_ids, segment_ids (R,S)) -> logits (R,S,V), as training computes them."""

    def __init__(self, backbone: nn.Cell, head: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.backbone, self.head, self.mask = backbone, head, SegmentMask(LENGTH)

    def construct(self, input_ids, position_ids, segment_ids):  # type: ignore[no-untyped-def]
        return ops.matmul(self.backbone(input_ids, position_ids, self.mask(segment_ids)), self.head().T)


def test_every_token_is_the_best_of_a_forward_pass(built: Built, greedy: list[list[int]]) -> None:
    logits = Logits(built.family.backbone(built.model), built.family.head(built.model)).set_train(False)
    rows = np.zeros((3, len(PROMPTS), LENGTH), np.int32)
    for row, ids in enumerate(prompt + answer for prompt, answer in zip(PROMPTS, greedy)):
        rows[:, row, : len(ids)] = ids, np.arange(len(ids)), np.ones(len(ids))
    best = logits(*map(Tensor, rows)).asnumpy().argmax(-1)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, greedy)):
        assert len(answer) == NEW
        assert answer == best[row, len(prompt) - 1 : len(prompt) - 1 + NEW].tolist()
    assert len({token for answer in greedy for token in answer}) > 5, "the answers vary"


def test_a_row_does_not_see_the_others(built: Built, greedy: list[list[int]]) -> None:
    assert built.answers([PROMPTS[2], PROMPTS[1]]) == [greedy[2], greedy[1]]


def test_an_answer_ends_before_its_first_stop_token(built: Built, greedy: list[list[int]]) -> None:
    stops = (greedy[0][4], greedy[2][0])
    expected = []
    for answer in greedy:
        ends = [place for place, token in enumerate(answer) if token in stops]
        expected.append(answer[: ends[0]] if ends else answer)
    told: list[int] = []
    assert built.answers(PROMPTS, stops, advance=told.append) == expected
    assert expected[2] == []
    assert sum(told) == sum(map(len, expected))


def test_a_row_that_has_ended_stays_so_and_the_last_one_ends_decoding(built: Built) -> None:
    script = iter([[7, 7, 7], [8, 6, 5], [4, 4, 39], [3, 8, 3], [2, 2, 2]])

    def choose(logits: np.ndarray) -> np.ndarray:
        assert (logits.shape, logits.dtype) == ((3, 40), np.float32)
        return np.array(next(script))

    assert generate(built.family, built.model, PROMPTS, NEW, {8, 39}, choose) == [[7], [7, 6, 4], [7, 5]]
    assert next(script) == [2, 2, 2], "nothing was drawn once all had ended"


@pytest.mark.parametrize(("longest", "new", "expected"), [(54, 10, 64), (55, 10, 128), (1, 1, 64), (100, 200, 320)])
def test_row_length(longest: int, new: int, expected: int) -> None:
    assert row_length([[1], [1] * longest], new) == expected
