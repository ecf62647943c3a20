from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import mindspore as ms
import pytest
from run_losses import MODES

if TYPE_CHECKING:
    from mindrlhf.runtime.device import Device


@pytest.fixture(autouse=True)
def device(cpu: Device) -> Device:
    """Once an operator has run, MindSpore takes no device any more, for which tests that come later ask."""
    return cpu


# Training runs in graph mode; a researcher tries a loss in the other one.
@pytest.fixture(params=["graph", pytest.param("pynative", marks=pytest.mark.slow)])
def mode(request: pytest.FixtureRequest) -> Iterator[str]:
    before = ms.get_context("mode")
    ms.set_context(mode=MODES[request.param])
    yield request.param
    ms.set_context(mode=before)
