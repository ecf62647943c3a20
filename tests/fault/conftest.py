"""A workshop for every test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from workshop import Workshop, fill


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[[str], Path]) -> Path:
    """The workshop before anything is spoilt."""
    folder = tmp_path_factory.mktemp("good")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fill(folder, tiny_folder("qwen2"))
    return folder


@pytest.fixture
def shop(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    """A workshop of this test's own, as the current folder."""
    folder = tmp_path / "here"
    shutil.copytree(good, folder, copy_function=os.link)
    monkeypatch.chdir(folder)
    return Workshop(folder)
