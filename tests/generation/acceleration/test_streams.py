"""Threads that share a GPU do not wait for each other's work."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch

from generation.acceleration.streams import (
    all_to_host,
    go_beside,
    go_first,
    to_host,
    use_device,
)

on_cuda = pytest.mark.cuda


def test_a_tensor_comes_to_the_host_as_it_is() -> None:
    tensor = torch.arange(6.0).view(2, 3).to(torch.float16)
    found = to_host(tensor)
    assert found.dtype == np.float16
    assert np.array_equal(found, [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_cuda)])
def test_several_tensors_come_to_the_host_together(device: str) -> None:
    tensors = [torch.arange(12, device=device).view(3, 4).T, torch.zeros(0, 2, device=device)]
    first, second = all_to_host(*tensors)
    assert first.tolist() == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]
    assert second.shape == (0, 2)


@on_cuda
def test_arrays_keep_their_values_while_later_ones_come() -> None:
    found = [to_host(torch.full((1 << 20,), value, device="cuda")) for value in range(20)]
    for value, array in enumerate(found):
        assert (array == value).all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_machine_without_cuda_is_left_alone(device: str) -> None:
    for prepare in (go_first, go_beside, use_device):
        prepare(device)


@on_cuda
def test_an_urgent_thread_has_a_stream_of_higher_priority() -> None:
    with ThreadPoolExecutor(1, initializer=partial(go_first, "cuda")) as urgent:
        stream = urgent.submit(torch.cuda.current_stream).result()
    assert stream.priority < torch.cuda.current_stream().priority


@on_cuda
def test_an_urgent_thread_does_not_wait_for_the_long_work_of_another() -> None:
    started = threading.Event()

    def work_for_seconds() -> float:
        torch.cuda._sleep(4_000_000_000)  # type: ignore[no-untyped-call]
        result = torch.ones(1, device="cuda")
        started.set()
        return float(to_host(result)[0])

    def add_up() -> float:
        return float(to_host(torch.ones(1000, device="cuda").sum()))

    urgent = ThreadPoolExecutor(1, initializer=partial(go_first, "cuda"))
    with ThreadPoolExecutor(1) as other, urgent:
        urgent.submit(add_up).result()  # loads the kernels
        long = other.submit(work_for_seconds)
        assert started.wait(10)
        for _ in range(20):
            assert urgent.submit(add_up).result() == 1000
        assert not long.done()
        assert long.result() == 1
