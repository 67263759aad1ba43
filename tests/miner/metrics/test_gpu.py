"""GPU memory is read without waiting for a driver that hangs, and without touching CUDA first."""

import shutil
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from miner.metrics import gpu
from miner.metrics.gpu import GpuMemory
from tests.support.measured_miner import fake_gpu


def _torch(*, in_use: bool) -> SimpleNamespace:
    return SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: in_use))


async def test_a_reading_is_kept_until_the_next() -> None:
    memory = fake_gpu()
    assert memory.sizes == {}
    await memory.refresh()
    assert memory.sizes["cuda:0", "total"] == 2 * memory.sizes["cuda:0", "used"]


async def test_a_driver_that_hangs_costs_half_a_second_once_and_its_series() -> None:
    release = threading.Event()
    reads: list[float] = []

    def read() -> gpu.Sizes:
        reads.append(time.monotonic())
        if len(reads) > 1:
            release.wait(10.0)
        return {("cuda:0", "total"): 1}

    memory = GpuMemory(lambda: True, read)
    await memory.refresh()
    assert memory.sizes
    started = time.monotonic()
    await memory.refresh()
    assert memory.sizes == {}
    assert time.monotonic() - started < gpu.READ_LIMIT_S + 0.5
    started = time.monotonic()
    await memory.refresh()
    assert time.monotonic() - started < 0.2
    assert len(reads) == 2
    release.set()


async def test_a_lost_device_costs_the_series_and_nothing_else() -> None:
    def fail() -> gpu.Sizes:
        raise RuntimeError("CUDA error: unspecified launch failure")

    memory = GpuMemory(lambda: True, fail)
    memory.sizes = {("cuda:0", "total"): 1}
    await memory.refresh()
    assert memory.sizes == {}


def test_torch_is_not_imported_to_ask_for_memory() -> None:
    program = (
        "import asyncio, sys\n"
        "from miner.metrics.gpu import GpuMemory\n"
        "memory = GpuMemory()\n"
        "asyncio.run(memory.refresh())\n"
        "assert memory.sizes == {}\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("torch", [SimpleNamespace(), _torch(in_use=False)])
async def test_cuda_that_is_not_in_use_yet_is_not_touched(
    torch: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch)  # At first, half imported.
    memory = GpuMemory()
    await memory.refresh()
    assert memory.sizes == {}


@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="needs a GPU")
async def test_on_cuda_the_memory_in_use_is_that_of_the_device() -> None:
    import torch

    held = torch.zeros(64 * 2**20, dtype=torch.uint8, device="cuda:0")
    memory = GpuMemory()
    await memory.refresh()
    sizes = {kind: size for (device, kind), size in memory.sizes.items() if device == "cuda:0"}
    assert held.numel() <= sizes["allocated"] <= sizes["reserved"] <= sizes["used"]
    assert sizes["used"] < sizes["total"]
    assert {device for device, _ in memory.sizes} == {"cuda:0"}  # Others are left alone.
