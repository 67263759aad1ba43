"""The parts of `scripts.benchmark parts` between a drawn picture and a scene code."""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from generation.acceleration.compiling import Compiled
from generation.acceleration.graphs import Captured
from generation.acceleration.streams import all_to_host, go_first, to_host, wait_for_stream
from generation.lift.triposr.model import TripoSR
from generation.pictures.framing import composite_on_grey, lay_on_grey
from scripts.benchmarks import full_size
from scripts.benchmarks.bench import BOTH, EAGER, Action, Bench, Prepare, Way

_BESIDE = 32
"""Copies between two tensors of the device in the graph that others wait beside."""


def picture(bench: Bench) -> Tensor:
    """Noise as a drawn picture comes: (S, S, 3) uint8 on the device."""
    generator = torch.Generator(bench.device).manual_seed(0)
    return torch.randint(
        0, 256, (bench.size,) * 2 + (3,), generator=generator, device=bench.device
    ).to(torch.uint8)


def _cutout(bench: Bench, way: Way) -> Action:
    """The stage: from a picture on the device to its cut-out on the host, and on grey."""
    remover = full_size.background(
        bench.settings.cutout.model_copy(update={"runtime": "torch"}),
        bench.device,
        bench.folder,
        bench.sizes,
    )
    drawn = picture(bench)

    def through_pictures() -> object:
        image = Image.fromarray(to_host(drawn))
        cutout = remover(image)
        return np.asarray(cutout), np.asarray(composite_on_grey(cutout))

    def on_the_device() -> object:
        framed = remover.framed(drawn)
        return all_to_host(drawn, framed, lay_on_grey(framed))

    return on_the_device if "on the device" in way else through_pictures


def _lift(bench: Bench, way: Way) -> Action:
    """The stage: from a picture on grey to a scene code."""
    model: TripoSR = full_size.triposr(bench.settings, bench.device, bench.sizes)
    if "resampled" in way:
        model.image_tokenizer.model.embeddings.fitted_positions = None
    if EAGER not in way:
        compiled = Compiled("TripoSR", model.forward, model.layers, backend=bench.backend)
        model.forward = Captured("TripoSR", compiled)  # type: ignore[method-assign]
    drawn = picture(bench)
    return partial(model.scene_codes, to_host(drawn) if "from the host" in way else drawn)


def _beside(bench: Bench, way: Way) -> Action:
    """A small kernel and its result's way to the host, in an urgent thread, beside a long graph.

    The graph holds matrix products and copies on the device in turn, as those of FLUX do.
    """
    side = 4096 if bench.device.type == "cuda" else 64
    left, right = (bench.random(side, side) for _ in range(2))
    kept = torch.empty_like(left)

    def long(x: Tensor) -> Tensor:
        for _ in range(_BESIDE):
            for _ in range(4):
                x = torch.mm(x, right) / side
            kept.copy_(x)
            x = kept.clone()
        return x

    graph = Captured("the long graph", long)
    graph(left)
    small = torch.ones(1 << 20, device=bench.device)
    target = torch.empty(small.shape, pin_memory=bench.device.type == "cuda")

    def pageable(x: Tensor) -> Tensor:
        wait_for_stream(x.device)
        return x.cpu()

    ways: Mapping[str, Callable[[Tensor], object]] = {
        "nothing comes": lambda x: None,
        "waited for, page-locked": to_host,
        "waited for, pageable": pageable,
        "queued, page-locked": lambda x: target.copy_(x, non_blocking=True),
        "queued, pageable": lambda x: x.cpu(),
    }
    (bring,) = (ways[name] for name in ways if way == frozenset(name.split(", ")))
    urgent = ThreadPoolExecutor(1, initializer=go_first, initargs=(str(bench.device),))

    def result() -> None:
        bring(small * 2)
        wait_for_stream(small.device)

    def once() -> None:
        ended = threading.Event()

        def keep_busy() -> None:
            while not ended.is_set():
                graph(left)
                wait_for_stream(left.device)

        busy = threading.Thread(target=keep_busy)
        busy.start()
        try:
            for _ in range(20):
                urgent.submit(result).result()
        finally:
            ended.set()
            busy.join()

    return once


PARTS: Mapping[str, tuple[Prepare, tuple[str, ...]]] = {
    "cutout": (_cutout, ("on the device", "through pictures")),
    "lift": (
        _lift,
        (
            EAGER,
            f"from the host, resampled, {BOTH}",
            f"from the host, {BOTH}",
            f"on the device, {BOTH}",
        ),
    ),
    "beside": (
        _beside,
        (
            "nothing comes",
            "waited for, page-locked",
            "waited for, pageable",
            "queued, page-locked",
            "queued, pageable",
        ),
    ),
}
"""Parts by name: how to prepare one, and in which ways it is run."""
