"""Functions of tensors that are recorded once as a CUDA graph and replayed from then on.

A small kernel takes less time to run than Python takes to launch it. A graph launches all kernels
of a function at once (CUDA C++ Programming Guide, "CUDA Graphs").
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from loguru import logger
from torch import Tensor

Outputs = Tensor | tuple[Tensor, ...]
_Signature = tuple[tuple[str, torch.Size, torch.dtype, torch.device], ...]

_WARM_UPS = 2
"""Calls before the recording: compilers, cuBLAS and cuDNN make their choices in them."""


@dataclass(frozen=True, eq=False)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: Mapping[str, Tensor]
    outputs: Outputs


class GraphPool:
    """Memory that graphs which never run at the same time use for their intermediate values."""

    def __init__(self) -> None:
        self._handle: Any = None

    def handle(self) -> Any:
        """What CUDA knows it by."""
        if self._handle is None:
            self._handle = torch.cuda.graph_pool_handle()
        return self._handle

    def abandon(self) -> None:
        """Gives it a new handle: a recording that failed leaves the old one locked."""
        self._handle = None


class Captured:
    """A function of CUDA tensors with one CUDA graph for every combination of shapes and types.

    The function must not look at values on the host, and must use no other tensors that change
    their place. Runs without gradients. Where recording fails, a warning says why and the function
    is called as it is from then on. Not for several threads at a time.

    Args:
        name: What the log calls it.
        function: Takes tensors, positional or by name, and returns one tensor or a tuple of them.
        pool: Memory shared with other graphs; its own if None.
        limit: Most graphs; what comes later with a new signature is called as it is.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Outputs],
        *,
        pool: GraphPool | None = None,
        limit: int = 4,
    ) -> None:
        self._name = name
        self._function = function
        self._pool = pool or GraphPool()
        self._limit = limit
        self._recordings: dict[_Signature, _Recording] = {}

    def __call__(self, *arguments: Tensor, **named: Tensor) -> Any:
        """Returns what the function returns, in memory that later calls leave alone."""
        inputs = {str(place): tensor for place, tensor in enumerate(arguments)} | named
        with torch.inference_mode(False), torch.no_grad():
            if not all(tensor.is_cuda for tensor in inputs.values()):
                return self._call(inputs)
            recording = self._recording(inputs)
            if recording is None:
                return self._call(inputs)
            for key, tensor in inputs.items():
                recording.inputs[key].copy_(tensor)
            recording.graph.replay()
            return _clone(recording.outputs)

    def _call(self, inputs: Mapping[str, Tensor]) -> Outputs:
        places = [tensor for key, tensor in inputs.items() if key.isdecimal()]
        names = {key: tensor for key, tensor in inputs.items() if not key.isdecimal()}
        return self._function(*places, **names)

    def _recording(self, inputs: Mapping[str, Tensor]) -> _Recording | None:
        signature = tuple((k, t.shape, t.dtype, t.device) for k, t in inputs.items())
        found = self._recordings.get(signature)
        if found is not None or len(self._recordings) >= self._limit:
            return found
        try:
            self._recordings[signature] = self._record(inputs)
        except torch.OutOfMemoryError:
            # Says nothing about the function; what is dropped for the next try may make room.
            self._pool.abandon()
            raise
        except RuntimeError as error:
            self._limit = 0
            self._pool.abandon()
            first_line = str(error).splitlines()[0]
            logger.warning("{} runs without a CUDA graph, more slowly: {}", self._name, first_line)
        return self._recordings.get(signature)

    def _record(self, inputs: Mapping[str, Tensor]) -> _Recording:
        own = {key: tensor.clone() for key, tensor in inputs.items()}
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self._call(own)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        pool = self._pool.handle()
        # The outer stream context restores the stream where a failed recording would not; other
        # threads may go on using the GPU meanwhile.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"),
        ):
            outputs = self._call(own)
        return _Recording(graph, own, outputs)


def _clone(outputs: Outputs) -> Outputs:
    if isinstance(outputs, Tensor):
        return outputs.clone()
    return tuple(tensor.clone() for tensor in outputs)
