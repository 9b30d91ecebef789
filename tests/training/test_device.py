"""The device that is meant; what errors say of memory, as torch, CUDA and libraries word it."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from support import make_spec

from sweepstack.config.errors import EnvironmentFault
from sweepstack.training.device import out_of_memory, resolve, settings


def named(device):
    return str(resolve(make_spec(f"training.device={device}").config.training))


def test_of_several_gpus_cuda_is_not_asked_before_a_worker_has_one(monkeypatch):
    """Once it is, a process no longer heeds CUDA_VISIBLE_DEVICES."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("asked"))
    assert [named("auto"), named("cuda"), named("cuda:1")] == ["cuda:0", "cuda:0", "cuda:1"]
    with pytest.raises(EnvironmentFault, match="this machine has 2"):
        named("cuda:2")


@pytest.mark.parametrize("count", [0, 1])
def test_a_gpu_that_cuda_cannot_use_is_none(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert named("auto") == "cpu"
    with pytest.raises(EnvironmentFault, match="this machine has 0"):
        named("cuda")


def test_a_numbered_device_is_the_current_one_meanwhile(monkeypatch):
    """Triton's kernels run there, whatever tensors they are given."""
    entered = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda, "device", lambda number: entered.append(number) or nullcontext()
    )
    for device in ("cuda:1", "cuda:2", "cpu", "cuda"):
        with settings(make_spec(f"training.device={device}").config.training):
            pass
    assert entered == [1]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8"),
    ],
)
def test_no_memory_is_known_as_that(error):
    assert out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("memory")])
def test_nothing_else_is(error):
    assert not out_of_memory(error)
