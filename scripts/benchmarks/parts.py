"""Times every network alone, in each way of running it: `python -m scripts.benchmark parts`.

The networks have full size, random weights and, where a way does not say otherwise, the settings of
preset gpu80. A way that fails becomes a row that says so, and the rest goes on. If it has taken the
device with it, as an illegal access does, the run ends and names the command for the rest: no way
fails for another one's fault. The file is written after every row, so a run that is interrupted
keeps its rows.
"""

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from generation.lift.triposr import SceneCode, TripoSR
from generation.lift.triposr.splats import extract_cloud
from generation.loading import require_device
from generation.pictures.onnx_network import OnnxNetwork
from generation.presets import preset
from generation.settings import GenerationSettings
from protocol import spz
from protocol.errors import SetupError
from scripts.benchmarks import drawing_parts, full_size, hand_over_parts
from scripts.benchmarks.bench import (
    BOTH,
    CAPTURED,
    COMPILED,
    EAGER,
    Action,
    Actions,
    Bench,
    Parts,
    Prepare,
    Way,
)
from scripts.benchmarks.figures import write_figures
from scripts.benchmarks.kept_warnings import kept_warnings
from scripts.benchmarks.timing import median_ms, wait

Row = dict[str, Any]


def run(
    *,
    device: str,
    only: Sequence[str] | None = None,
    out: Path | None = None,
    sizes: full_size.Sizes = full_size.FULL,
    settings: GenerationSettings | None = None,
    backend: str = "inductor",
    parts: Parts | None = None,
    command: str = "parts",
) -> list[Row]:
    """Prints a line for every part and way as soon as it is measured.

    Args:
        device: Where the networks run, in torch's words.
        only: Names in `PARTS`; all when None.
        out: JSON file for the rows, if any.
        sizes: Shapes of the networks.
        settings: Their settings; those of preset gpu80 when None.
        backend: What `torch.compile` compiles with.
        parts: What is measured; `PARTS` when None.
        command: Which of `scripts.benchmark` this is.

    Returns:
        Rows with `part` and `way`, and either `median_ms`, `first_s` (the first call, which
        compiles and records), on CUDA `peak_gib` (the most that tensors took) and `warnings` of the
        log, or `failed`. Where several pictures are drawn at once, `pictures` is how many and
        `ms_a_picture` the share of each; where a way has several actions, `case` is which.

    Raises:
        SetupError: There is no such part or device, or a way has taken the device with it.
    """
    parts = PARTS if parts is None else parts
    unknown = [name for name in only or () if name not in parts]
    if unknown:
        raise SetupError(f"there is no part {unknown[0]!r}", fix=f"--only {', '.join(parts)}")
    settings = (settings or preset("gpu80")).model_copy(update={"device": device})
    require_device(settings)
    rows: list[Row] = []
    print(f"{'part':<14}{'way':<44}{'median ms':>10}{'first s':>10}")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        bench = Bench(settings, sizes, Path(folder), backend)
        names = list(only or parts)
        for number, part in enumerate(names):
            prepare, ways = parts[part]
            for way in ways:
                for found in _measure(bench, prepare, way):
                    row = {"part": part, "way": way} | found
                    rows.append(row)
                    print(_line(row), flush=True)
                    write_figures(out, rows)
                if "failed" in rows[-1]:
                    _check_device(command, device, f"{part}, {way}", left=names[number + 1 :])
    return rows


def _check_device(command: str, device: str, after: str, *, left: Sequence[str]) -> None:
    try:
        torch.randn(1, device=device).sum().item()
    except RuntimeError as error:
        rest = " ".join(f"--only {part}" for part in left)
        raise SetupError(
            f"{device} cannot be used by this process any more, after {after}: "
            f"{str(error).splitlines()[0]}",
            fix=f"python -m scripts.benchmark {command} --device {device} {rest}"
            if left
            else "correct that part; no other is left",
        ) from error


def _measure(bench: Bench, prepare: Prepare, way: str) -> Iterator[Row]:
    try:
        yield from _rows(bench, prepare, way)
    finally:
        # The next way builds its network again, and shall find nothing of this one.
        torch._dynamo.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _rows(bench: Bench, prepare: Prepare, way: str) -> Iterator[Row]:
    prepared: list[Actions] = []

    def build() -> Row:
        prepared.append(prepare(bench, frozenset(way.split(", "))))
        return {}

    built = _watched(build)
    if not prepared:
        yield built
        return
    actions: Actions = prepared[0]
    if not isinstance(actions, Mapping):
        yield _watched(partial(_time, bench.settings.device, actions))
        return
    for key, action in actions.items():
        row = _watched(partial(_time, bench.settings.device, action))
        if isinstance(key, int) and "median_ms" in row:
            row["ms_a_picture"] = row["median_ms"] / key
        yield {"pictures" if isinstance(key, int) else "case": key} | row


def _watched(action: Callable[[], Row]) -> Row:
    """What an action finds, or why it failed, with the warnings of the log."""
    warnings: list[str] = []
    try:
        with kept_warnings(warnings):
            return action() | {"warnings": warnings}
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return {"failed": f"{type(error).__name__}: {lines[0][:200]}", "warnings": warnings}


def _time(device: str, action: Action) -> Row:
    cuda = torch.cuda if device.startswith("cuda") else None
    if cuda is not None:
        cuda.reset_peak_memory_stats(device)
    wait(device)
    begin = time.perf_counter()
    action()
    wait(device)
    row = {"first_s": time.perf_counter() - begin}
    row["median_ms"] = median_ms(action, device=device)
    if cuda is not None:
        row["peak_gib"] = cuda.max_memory_allocated(device) / 2**30
    return row


def _line(row: Row) -> str:
    way = row["way"]
    if "pictures" in row:
        way += f", {row['pictures']} at once"
    elif "case" in row:
        way += f": {row['case']}"
    head = f"{row['part']:<14}{way:<44}"
    if "failed" in row:
        return f"{head}failed: {row['failed']}"
    notes = f"  {row['ms_a_picture']:.1f} a picture" if "ms_a_picture" in row else ""
    notes += "".join(f"  {warning}" for warning in row["warnings"])
    return f"{head}{row['median_ms']:>10.2f}{row['first_s']:>10.1f}{notes}"


def _triposr(bench: Bench, way: Way) -> Action:
    model = full_size.triposr(bench.settings, bench.device, bench.sizes)
    side = bench.sizes.triposr.image_size
    images = bench.random(1, 3, side, side).float().sigmoid()
    return bench.action(lambda images: model(images), way, model.layers, images=images)


def _scene(bench: Bench) -> tuple[TripoSR, SceneCode]:
    model = full_size.triposr(bench.settings, bench.device, bench.sizes)
    return model, model.scene_codes(_picture(bench.sizes.triposr.image_size))


def _splats(bench: Bench, way: Way) -> Action:
    return partial(extract_cloud, *_scene(bench), bench.settings.splats)


def _encode(bench: Bench, way: Way) -> Action:
    cloud = extract_cloud(*_scene(bench), bench.settings.splats)
    return partial(spz.encode, cloud, level=bench.settings.spz_level)


def _picture(side: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _saliency(bench: Bench, way: Way) -> Action:
    """The network of the background removal without what surrounds it."""
    network: Any = OnnxNetwork(full_size.background_file(bench.folder, bench.sizes)).eval()
    dtype = torch.bfloat16 if "bfloat16" in way else torch.float32
    network.to(bench.device, dtype, memory_format=torch.channels_last)
    side = network.input_shape[-1]
    image = bench.random(1, 3, side, side).to(dtype, memory_format=torch.channels_last)
    return bench.action(lambda image: network(image), way, (network,), image=image)


def _background(bench: Bench, way: Way) -> Action:
    settings = bench.settings.cutout.model_copy(
        update={
            "runtime": "torch" if "torch" in way else "onnxruntime",
            "threads": len(os.sched_getaffinity(0)),
        }
    )
    remover = full_size.background(settings, bench.device, bench.folder, bench.sizes)
    return partial(remover, _picture(bench.settings.text_to_image.size))


PARTS: dict[str, tuple[Prepare, tuple[str, ...]]] = {
    **drawing_parts.PARTS,
    "saliency": (_saliency, (EAGER, CAPTURED, f"bfloat16, {CAPTURED}")),
    "background": (_background, ("onnxruntime", "torch")),
    **hand_over_parts.PARTS,
    "triposr": (_triposr, (EAGER, CAPTURED, COMPILED, BOTH)),
    "splats": (_splats, (EAGER,)),
    "encode": (_encode, ("spz",)),
}
"""What `run` measures by default."""
