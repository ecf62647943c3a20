"""The gate: refused where it was not proven, opened once, and nothing else of the process changed."""

from __future__ import annotations

import mindspore
import pytest

from mindrlhf.parallel import gate
from mindrlhf.runtime.errors import UserError


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mindspore, "__version__", "2.10.0")
    with pytest.raises(UserError, match=r"was proven on MindSpore 2\.9\.0, and this is 2\.10\.0; install that, or run"):
        gate.open_gate()


def test_another_build_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gate.PROVEN, mindspore.__version__, 5)
    with pytest.raises(UserError, match=r"knows 5 places in MindSpore .* and finds 4: it is another build"):
        gate.open_gate()


def test_it_is_opened_once() -> None:
    assert gate.open_gate() in (0, 4)
    assert gate.open_gate() == 0
