"""A recorded function gives what the function gives, and falls back to it."""

from collections.abc import Iterator

import pytest
import torch
from loguru import logger
from torch import Tensor

from generation.acceleration.graphs import Captured
from generation.recovery import is_of_device

on_cuda = pytest.mark.cuda


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lines.append, level="WARNING", format="{message}")
    yield lines
    logger.remove(sink)


def _scaled_sum(x: Tensor, *, scale: Tensor) -> tuple[Tensor, Tensor]:
    return x * scale, (x * scale).sum()


def test_on_the_cpu_the_function_is_called() -> None:
    scaled, total = Captured("sum", _scaled_sum)(torch.ones(3), scale=torch.tensor(2.0))
    assert (scaled.tolist(), float(total)) == ([2.0] * 3, 6.0)


@on_cuda
def test_every_signature_has_its_own_graph_and_outputs_stay(warnings: list[str]) -> None:
    captured = Captured("sum", _scaled_sum, limit=2)
    scale = torch.tensor(2.0, device="cuda")
    first, _ = captured(torch.ones(3, device="cuda"), scale=scale)
    second, total = captured(torch.full((3,), 5.0, device="cuda"), scale=scale)
    assert first.tolist() == [2.0] * 3
    assert (second.tolist(), float(total)) == ([10.0] * 3, 30.0)
    for size in (4, 5, 6, 3):  # 5 and 6 are beyond the limit
        assert float(captured(torch.ones(size, device="cuda"), scale=scale)[1]) == 2.0 * size
    assert len(captured._recordings) == 2
    (line,) = warnings
    assert line.startswith("sum has CUDA graphs for 2 shapes")


@on_cuda
def test_results_of_inference_mode_are_taken() -> None:
    captured = Captured("double", lambda x: x * 2)
    with torch.inference_mode():
        inside = captured(torch.ones(3, device="cuda"))
    outside = captured(inside)
    assert (inside.tolist(), outside.tolist()) == ([2.0] * 3, [4.0] * 3)


@on_cuda
def test_what_cannot_be_recorded_is_called_and_said_once(warnings: list[str]) -> None:
    captured = Captured("host", lambda x: x * float(x.sum()))
    before = torch.cuda.current_stream()
    for _ in range(2):
        assert captured(torch.ones(3, device="cuda")).tolist() == [3.0] * 3
    (line,) = warnings
    assert line.startswith("host runs without a CUDA graph")
    assert torch.cuda.current_stream() == before
    assert torch.ones(3, device="cuda").sum().item() == 3.0


@on_cuda
@pytest.mark.parametrize("when", ["before", "while it records"])
def test_too_little_memory_is_no_reason_to_record_no_more(when: str, warnings: list[str]) -> None:
    full = [True]

    def double(x: Tensor) -> Tensor:
        doubled = x * 2
        if full and torch.cuda.is_current_stream_capturing() == (when != "before"):
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        return doubled

    captured = Captured("double", double)
    with pytest.raises(RuntimeError) as caught:
        captured(torch.ones(3, device="cuda"))
    assert is_of_device(caught.value)
    full.clear()
    assert captured(torch.ones(3, device="cuda")).tolist() == [2.0] * 3
    assert len(captured._recordings) == 1
    assert warnings == []


@on_cuda
def test_a_recording_that_fails_leaves_random_numbers_usable() -> None:
    torch.cuda.manual_seed(7)
    expected = torch.randn(5, device="cuda")
    torch.cuda.manual_seed(7)
    Captured("host", lambda x: x * float(x.sum()))(torch.ones(3, device="cuda"))
    # They go on where they were, and can be seeded.
    assert torch.equal(torch.randn(5, device="cuda"), expected)
    torch.cuda.manual_seed(7)
    assert torch.equal(torch.randn(5, device="cuda"), expected)
