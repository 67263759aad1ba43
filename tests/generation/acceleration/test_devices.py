"""An engine may run on any device: streams and graphs belong to the tensors' device.

The first tests need no GPU: they note on which device each of CUDA's calls would have been made.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from generation.acceleration.graphs import Captured, GraphPool
from generation.acceleration.streams import (
    go_beside,
    go_first,
    to_host,
    use_device,
    wait_for_stream,
)
from generation.pictures.flux1 import Flux1
from generation.pictures.saliency import Layout, SaliencyNetwork
from generation.presets import preset
from generation.weights.store import ModelPaths
from scripts.benchmarks.u2net import write_random

LAST = torch.device("cuda", max(0, torch.cuda.device_count() - 1))
needs_cuda = pytest.mark.cuda
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")


class _Placed:
    """As much of a CUDA tensor as a graph's inputs and outputs need, without a CUDA device."""

    is_cuda, dtype = True, torch.float32

    def __init__(self, device: str, size: int = 3) -> None:
        self.device, self.shape = torch.device(device), torch.Size([size])

    def clone(self) -> "_Placed":
        return self

    def copy_(self, other: "_Placed") -> None:
        assert other.device == self.device


class _Stream:
    def __init__(self, calls: "_Calls", device: torch.device) -> None:
        self.calls, self.device = calls, device

    def wait_stream(self, other: "_Stream") -> None:
        assert other.device == self.device

    def synchronize(self) -> None:
        self.calls.note("synchronize", self.device)


class _Calls:
    """Stands for `torch.cuda` and keeps what is called, on which device.

    Attributes:
        current: Index of the current device.
        notes: Name of the call and the index of the device that it concerned.
    """

    def __init__(self) -> None:
        self.current = 0
        self.notes: list[tuple[str, int | None]] = []
        self._selected: list[_Stream] = []

    def note(self, name: str, device: torch.device | None = None) -> None:
        self.notes.append((name, self.current if device is None else device.index))

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.current = self.current, device.index
        yield
        self.current = before

    @contextmanager
    def stream(self, stream: _Stream) -> Iterator[None]:
        self._selected.append(stream)
        yield
        self._selected.pop()

    def make_stream(self, device: torch.device | None = None) -> _Stream:
        device = torch.device("cuda", self.current) if device is None else device
        self.note("Stream", device)
        return _Stream(self, device)

    def current_stream(self, device: torch.device | None = None) -> _Stream:
        return _Stream(self, torch.device("cuda", self.current) if device is None else device)

    @contextmanager
    def graph(self, _graph: object, *, stream: _Stream | None = None, **_: Any) -> Iterator[None]:
        self.note("capture")
        self.note("capture stream", (stream or _Stream(self, torch.device("cuda", 0))).device)
        yield

    def work(self, x: Any) -> Any:
        """What is recorded: notes the device of the stream that it would be launched on."""
        self.note("work", self._selected[-1].device if self._selected else None)
        return (x,)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> _Calls:
    recorder = _Calls()
    for name in ("device", "stream", "current_stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(recorder, name))
    monkeypatch.setattr(torch.cuda, "Stream", recorder.make_stream)

    class Graph:
        def replay(self) -> None:
            recorder.note("replay")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    return recorder


@pytest.mark.skipif(torch.cuda.is_available(), reason="fakes a CUDA device")
def test_a_graph_is_recorded_on_the_device_of_its_tensors(calls: _Calls) -> None:
    captured: Any = Captured("double", calls.work)
    for index in (1, 0):
        captured(_Placed(f"cuda:{index}"))
        recorded = [note for note in calls.notes if note[0] != "replay"]
        assert {device for _, device in recorded} == {index}
        assert [name for name, _ in recorded].count("capture") == 1
        assert calls.current == 0
        calls.notes.clear()
    captured(_Placed("cuda:1"))
    assert [name for name, _ in calls.notes] == ["replay"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="fakes a CUDA device")
def test_graphs_of_one_pool_are_recorded_on_one_stream(calls: _Calls) -> None:
    pool = GraphPool()
    first: Any = Captured("double", calls.work, pool=pool)
    second: Any = Captured("double", calls.work, pool=pool)
    first(_Placed("cuda:1"))
    second(_Placed("cuda:1", size=4))
    assert calls.notes.count(("Stream", 1)) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="fakes a CUDA device")
def test_waiting_is_for_the_stream_of_the_named_device(calls: _Calls) -> None:
    wait_for_stream(torch.device("cuda:1"))
    wait_for_stream(torch.device("cpu"))
    assert calls.notes == [("synchronize", 1)]


@needs_cuda
@pytest.mark.parametrize("prepare", [use_device, go_first, go_beside])
def test_a_prepared_thread_works_on_its_device(prepare: Callable[[str], None]) -> None:
    with ThreadPoolExecutor(1, initializer=partial(prepare, str(LAST))) as thread:
        assert thread.submit(torch.cuda.current_device).result() == LAST.index
        assert thread.submit(torch.cuda.current_stream).result().device == LAST
    assert torch.cuda.current_device() == 0


@needs_cuda
def test_a_device_without_an_index_is_the_current_one() -> None:
    use_device("cuda")
    assert torch.cuda.current_device() == 0


@needs_cuda
@pytest.mark.parametrize("index", [pytest.param(0), pytest.param(1, marks=needs_two)])
def test_a_replay_computes_on_any_device(index: int) -> None:
    captured = Captured("double", lambda x: x * 2)
    for value in (1.0, 5.0):
        doubled = captured(torch.full((1000,), value, device=f"cuda:{index}"))
        assert doubled.device.index == index
        assert to_host(doubled).tolist() == [2 * value] * 1000
    assert torch.cuda.current_device() == 0


@needs_two
def test_one_function_has_graphs_on_two_devices() -> None:
    captured = Captured("double", lambda x: x * 2)
    for value in (1.0, 5.0):
        for index in (0, 1):
            doubled = captured(torch.full((10,), value, device=f"cuda:{index}"))
            assert to_host(doubled).tolist() == [2 * value] * 10


@needs_cuda
def test_graphs_of_one_pool_leave_each_others_results_alone() -> None:
    pool = GraphPool()

    def chain(x: Tensor) -> Tensor:
        for _ in range(5):
            x = (x * 2).sin()
        return x

    first = Captured("first", chain, pool=pool)
    second = Captured("second", lambda x: chain(chain(x)), pool=pool)
    xs = [torch.rand(size, device=LAST) for size in (100_000, 100_000, 50_000)]
    expected = [(chain(x), chain(chain(x))) for x in xs]
    found = [(first(x), second(x)) for x in (*xs, *xs)]
    for (a, b), (c, d) in zip(found, expected * 2, strict=True):
        torch.testing.assert_close(a, c)
        torch.testing.assert_close(b, d)


@needs_cuda
@pytest.mark.parametrize("index", [pytest.param(0), pytest.param(1, marks=needs_two)])
def test_flux_recorded_on_any_device_draws_what_eager_draws(
    embedded_paths: ModelPaths, index: int
) -> None:
    settings = preset("embedded").text_to_image
    device = f"cuda:{index}"
    eager = Flux1.from_pretrained(embedded_paths.text_to_image, settings, device)
    fast = Flux1(eager.pipeline, settings)
    # Recorded, but not compiled: what differs then is only how kernels are launched.
    pool = GraphPool()
    fast._encode, fast._step, fast._decode = (
        Captured("part", part, pool=pool) for part in (fast._encode, fast._step, fast._decode)
    )
    for prompt, steps, size in (("a blue cube", 8, 128), ("a red car", 4, 64), ("a mug", 2, 128)):
        for seed in (0, 1):
            found, expected = (
                np.asarray(draw(prompt, seed, steps=steps, size=size), dtype=int)
                for draw in (fast, eager)
            )
            assert np.abs(found - expected).max() <= 2
    assert len(fast._step._recordings) == 2
    assert all(captured._records for captured in (fast._encode, fast._step, fast._decode))
    assert torch.cuda.current_device() == 0


@needs_cuda
@pytest.mark.parametrize("index", [pytest.param(0), pytest.param(1, marks=needs_two)])
def test_flux_has_finished_when_a_stage_returns(embedded_paths: ModelPaths, index: int) -> None:
    settings = preset("embedded").text_to_image
    flux = Flux1.from_pretrained(embedded_paths.text_to_image, settings, f"cuda:{index}")

    def slow(function: Callable[..., Any], *tensors: Tensor) -> Any:
        results = function(*tensors)
        with torch.cuda.device(index):
            torch.cuda._sleep(100_000_000)  # type: ignore[no-untyped-call]
        return results

    flux._encode, flux._step = partial(slow, flux._encode), partial(slow, flux._step)
    stream = torch.cuda.current_stream(index)
    drawing = flux.begin("a blue cube", (0,), steps=2, size=64)
    assert stream.query()
    for _ in range(2):
        drawing = flux.denoise(drawing)
        assert stream.query()


@needs_two
def test_the_background_network_runs_on_its_device(tmp_path: Path) -> None:
    write_random(tmp_path / "u2netp.onnx", "u2netp", side=128)
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    masks = []
    for device in ("cuda:0", "cuda:1"):
        network = SaliencyNetwork(tmp_path / "u2netp.onnx", Layout(), device)
        found = [network(torch.from_numpy(noise).to(device)) for _ in range(2)]
        assert {str(mask.device) for mask in found} == {device}
        masks.append([to_host(mask).astype(int) for mask in found])
    assert torch.cuda.current_device() == 0
    assert np.abs(np.array(masks) - masks[0][0]).max() <= 2
