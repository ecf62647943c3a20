"""Log-probs of scored tokens without gradient."""

from __future__ import annotations

import mindspore as ms
from mindspore import nn, ops

from mindrlhf.cells.scoring import ScoreTokens, SegmentMask


class TokenLogpsCell(nn.Cell):
    """(input_ids, position_ids, segment_ids (R,S), predict_from, targets (R,T)) -> log-probs (R,T) float32."""

    def __init__(self, backbone: nn.Cell, head_weight: ms.Parameter, seq_length: int) -> None:
        super().__init__(auto_prefix=False)
        self.backbone = backbone
        self.head_weight = head_weight
        self.mask = SegmentMask(seq_length)
        self.score = ScoreTokens(explicit_reduction=True)

    def construct(self, input_ids, position_ids, segment_ids, predict_from, targets):
        hidden = self.backbone(input_ids, position_ids, self.mask(segment_ids))
        token_logps, _ = self.score(hidden, self.head_weight, predict_from, targets)
        return ops.stop_gradient(token_logps)
