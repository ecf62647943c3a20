"""Yaml files of a test, and what is said of them."""

from __future__ import annotations

import pytest

from mindrlhf.config.load import load_config
from mindrlhf.runtime.errors import UserError


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write files and read them by their relative names, as the errors then call them."""
    monkeypatch.chdir(tmp_path)

    def write_file(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return name

    return write_file


@pytest.fixture
def refusal():
    """The one line that `load_config` refuses its arguments with."""

    def refuse(*arguments, **words):
        with pytest.raises(UserError) as caught:
            load_config(*arguments, **words)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return refuse
