from __future__ import annotations

from collections.abc import Iterator

import mindspore as ms
import pytest
from run_losses import MODES


@pytest.fixture(params=sorted(MODES))
def mode(request: pytest.FixtureRequest) -> Iterator[str]:
    before = ms.get_context("mode")
    ms.set_context(mode=MODES[request.param])
    yield request.param
    ms.set_context(mode=before)
