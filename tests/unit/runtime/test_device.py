"""What a device allows, and the settings that it refuses with a sentence."""

from __future__ import annotations

import numpy as np
import pytest

from mindrlhf.runtime.device import Device, setup
from mindrlhf.runtime.errors import UserError
from mindrlhf.runtime.seed import permutation

CPU, ASCEND = Device("CPU"), Device("Ascend")


@pytest.fixture(autouse=True)
def single(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MS_WORKER_NUM", raising=False)


def test_auto_dtype() -> None:
    assert (CPU.compute_dtype(), ASCEND.compute_dtype()) == ("float32", "bfloat16")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_named_dtype_is_kept(dtype: str) -> None:
    assert CPU.compute_dtype(dtype) == ASCEND.compute_dtype(dtype) == dtype


def test_bfloat16_needs_ascend() -> None:
    assert ASCEND.compute_dtype("bfloat16") == "bfloat16"
    with pytest.raises(UserError, match="no bfloat16 kernels on CPU"):
        CPU.compute_dtype("bfloat16")


def test_unknown_dtype() -> None:
    with pytest.raises(UserError, match="'fp8' is not one of auto, float32"):
        CPU.compute_dtype("fp8")


def test_ascend_alone_has_its_kernels() -> None:
    assert (CPU.flash_attention, ASCEND.flash_attention) == (False, True)


def test_setup_of_one_process() -> None:
    assert setup("CPU") == Device("CPU", 0, 1)


def test_setup_seeds_everything() -> None:
    import mindspore

    draws = []
    for _ in range(2):
        setup("CPU", seed=7)
        draws.append((np.random.random(), float(mindspore.ops.standard_normal((1,)).asnumpy()[0])))
    assert draws[0] == draws[1]


def test_unknown_target() -> None:
    with pytest.raises(UserError, match="'GPU' is not one of auto, CPU, Ascend"):
        setup("GPU")


def test_auto_and_ascend_agree_on_what_is_there() -> None:
    if setup("auto").target == "CPU":
        with pytest.raises(UserError, match="finds no Ascend device"):
            setup("Ascend")


def test_all_sum_of_one_worker_is_the_array() -> None:
    array = np.array([1.5, -2.0])
    assert CPU.all_sum(array) is array


def test_permutation_is_a_function_of_seed_and_epoch() -> None:
    assert permutation(0, 0, 8).tolist() == [2, 4, 3, 6, 5, 0, 1, 7]
    assert sorted(permutation(3, 1, 100).tolist()) == list(range(100))
    assert permutation(3, 1, 100).tolist() != permutation(3, 2, 100).tolist() != permutation(4, 1, 100).tolist()
