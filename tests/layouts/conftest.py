"""Compilations in processes of their own, two at a time: each is at work on one core."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import pytest

HERE = Path(__file__).parent
AT_ONCE, SECONDS = 2, 800


def _compile(script: str, words: tuple[str, ...], out: Path) -> Any:
    path = os.pathsep.join([str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")])
    argv = [sys.executable, str(HERE / script), *words]
    environment = {**os.environ, "PYTHONPATH": path}
    ran = subprocess.run(argv, check=False, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def processes() -> Iterator[Callable[..., Future[Any]]]:
    """Starts a script of this folder when its turn comes; the Path among its words is the JSON that it writes."""
    with ThreadPoolExecutor(AT_ONCE) as pool:

        def start(script: str, *words: str | Path) -> Future[Any]:
            (out,) = (word for word in words if isinstance(word, Path))
            return pool.submit(_compile, script, tuple(map(str, words)), out)

        yield start
        pool.shutdown(cancel_futures=True)
