"""The matrix that turns hidden states into logits."""

from __future__ import annotations

from mindspore import Parameter, nn


class Head(nn.Cell):
    """() -> the (V,H) weight as it is. The cell owns no parameter of its own."""

    def __init__(self, weight: Parameter) -> None:
        super().__init__(auto_prefix=False)
        self.weight = weight

    def construct(self):
        return self.weight
