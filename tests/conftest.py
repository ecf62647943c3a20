"""What all tests share: a quiet MindSpore in graph mode, and a tiny Hugging Face folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pipeline_shell import shell, trained  # noqa: F401  (fixtures)

from mindrlhf.runtime.logging import quiet

if TYPE_CHECKING:
    from mindrlhf.runtime.device import Device

quiet()  # also keeps what failed compilations dump out of the repository


@pytest.fixture(scope="session")
def cpu() -> Device:
    """This process as one CPU worker in graph mode, as the commands run."""
    from mindrlhf.runtime.device import setup

    return setup("CPU")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The Hugging Face folder of a one-layer model of a family, made once."""
    from mindrlhf.commands.make_tiny import make_tiny

    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(f"tiny-{family}")
            make_tiny(made[family], family, vocab_size=300, hidden_size=64, layers=1)
        return made[family]

    return folder
