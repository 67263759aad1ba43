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

from generation.recovery import is_of_device

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
    """Memory in which several graphs keep their intermediate values and their outputs.

    A replay overwrites what other graphs of the pool have left there. So the graphs must never run
    at the same time, and outputs must be copied before the next replay, as `Captured` does.
    """

    def __init__(self) -> None:
        self._handle: Any = None
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def handle(self) -> Any:
        """What CUDA knows the pool by."""
        if self._handle is None:
            self._handle = torch.cuda.graph_pool_handle()
        return self._handle

    def stream(self, device: torch.device) -> torch.cuda.Stream:
        """The stream on which all graphs of this pool are recorded on a device.

        It is the same for all of them, because torch's allocator reuses memory only within one
        stream. torch's own default is a single stream for all devices, that of the device which
        recorded first: a recording elsewhere would stay empty.
        """
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return self._streams[device]

    def abandon(self, device: torch.device) -> None:
        """Moves on to new memory: a recording that failed leaves the old pool locked.

        It also leaves the device's random numbers in recording, where every later use of them
        raises; a copy of their state is not in recording.
        """
        self._handle = None
        self._streams.clear()
        generator = torch.cuda.default_generators[device.index]
        generator.graphsafe_set_state(generator.clone_state())


class Captured:
    """A function of CUDA tensors with one CUDA graph for every combination of shapes and types.

    The function must not look at values on the host, and must use no other tensors that change
    their place. It runs without gradients, and on the tensors' device, whichever is current. If
    recording fails, a warning says why and the function is called directly from then on. Only one
    thread at a time may call it.

    Args:
        name: What the log calls it.
        function: Takes tensors, positional or by name, all on one device, and returns one tensor or
            a tuple of them.
        pool: Memory shared with other graphs; its own if None.
        limit: Maximum number of graphs. Beyond it, a warning is logged and further shapes are
            computed without a graph.
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
        self._records = True
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
        recording = self._recordings.get(signature)
        if recording is not None or not self._records:
            return recording
        if len(self._recordings) >= self._limit:
            self._records = False
            logger.warning(
                "{} has CUDA graphs for {} shapes, the most it may have: it runs without one, more "
                "slowly, for any other",
                self._name,
                self._limit,
            )
            return None
        device = next(iter(inputs.values())).device
        try:
            self._recordings[signature] = self._record(inputs, device)
        except RuntimeError as error:
            self._pool.abandon(device)
            if is_of_device(error):
                # Says nothing about the function; what is dropped for the next try may make room.
                raise
            self._records = False
            first_line = str(error).splitlines()[0]
            logger.warning("{} runs without a CUDA graph, more slowly: {}", self._name, first_line)
        return self._recordings.get(signature)

    def _record(self, inputs: Mapping[str, Tensor], device: torch.device) -> _Recording:
        # A graph is recorded on the current device, and torch waits for that one first.
        with torch.cuda.device(device):
            own = {key: tensor.clone() for key, tensor in inputs.items()}
            before, stream = torch.cuda.current_stream(device), self._pool.stream(device)
            stream.wait_stream(before)
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    self._call(own)
            before.wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # The outer stream context restores the stream where a failed recording would not; other
            # threads may go on using the GPU meanwhile.
            with (
                torch.cuda.stream(before),
                torch.cuda.graph(
                    graph,
                    pool=self._pool.handle(),
                    stream=stream,
                    capture_error_mode="thread_local",
                ),
            ):
                outputs = self._call(own)
        return _Recording(graph, own, outputs)


def _clone(outputs: Outputs) -> Outputs:
    if isinstance(outputs, Tensor):
        return outputs.clone()
    return tuple(tensor.clone() for tensor in outputs)
