"""Times the validator's scorer: `python -m scripts.benchmark scoring --device cuda`.

The networks have their full size and random weights, which changes neither speed nor memory.
"""

import statistics
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from generation.acceleration.graphs import Captured
from generation.rendering import gsplat_backend
from generation.rendering.device import dequantise, validator_views
from generation.rendering.device_cloud import seen_by_validator
from generation.scoring.data_checks import problem_of
from generation.scoring.judge import Judge, ValidatorNetworks
from generation.scoring.pixels import for_quality, to_unit
from generation.scoring.quality import QualityNetwork
from generation.scoring.similarity import Lpips, Ssim
from generation.scoring.text_alignment import ClipNetwork, empty_clip, published_config
from generation.scoring.validator import Shapes, ValidatorScorer, require_extra
from generation.scoring.validity import check
from generation.stage import Asset, Cutout
from protocol import spz
from protocol.tasks import ImageTask, Task, TextTask
from scripts.benchmarks.figures import write_figures
from scripts.benchmarks.rendering import sphere
from scripts.benchmarks.timing import WARM_UP, wait

Row = dict[str, float]

_VIEWS = 16
_CUTOUT_SIDE = 600


def run(
    *,
    device: str,
    gaussians: int = 120_000,
    runs: int = 30,
    out: Path | None = None,
    shapes: Shapes | None = None,
    backend: str = "inductor",
) -> dict[str, Any]:
    """Prints and returns milliseconds of each part, of whole scores, memory and differences.

    Args:
        device: Where to run, in torch's words. On CUDA everything is float16, compiled and recorded
            as the presets for GPUs have it; on a CPU float32 and eager.
        gaussians: Size of the cloud.
        runs: Of everything, after a warm-up.
        out: JSON file to write the same figures to, if any.
        shapes: Of other networks than the published ones.
        backend: What `torch.compile` compiles with.

    Returns:
        `machine`, `renderer`, `first_s` (seconds of the first call of a kind, in which networks are
        compiled), `rows` (median and p95 in milliseconds by part), `memory_mb` on CUDA, and
        `half`, the parts of a score in both precisions.

    Raises:
        SetupError: A package is missing.
    """
    on = torch.device(device)
    require_extra(on.type)
    shapes = shapes or Shapes()
    is_cuda = on.type == "cuda"
    dtype = torch.float16 if is_cuda else torch.float32
    renderer = "gsplat" if is_cuda and gsplat_backend.is_usable() else "cpu"
    if is_cuda:
        torch.cuda.reset_peak_memory_stats(on)
    scorer = random_scorer(on, dtype, shapes, accelerate=is_cuda, backend=backend)
    weights_mb = _megabytes(torch.cuda.memory_allocated(on)) if is_cuda else 0.0
    cloud = sphere(gaussians)
    asset = Asset(cloud, spz.encode(cloud), check(cloud))
    packed = spz.unpack(asset.spz)
    # Without gsplat a GPU waits a minute for the CPU's pictures: noise has the same cost after.
    slow = is_cuda and renderer == "cpu"
    views = _noise(shapes.view_size, on) if slow else scorer.views(packed)
    text, image = _tasks()
    cutout = _cutout()
    first_s = {
        "views": _seconds(lambda: scorer.measure(views, text), device),
        "picture": _seconds(lambda: scorer.rate(cutout, text), device),
        "image task": _seconds(lambda: scorer.measure(views, image), device),
    }
    rows: dict[str, Row] = {}

    def row(name: str, action: Callable[[], object], times: int = runs) -> None:
        rows[name] = _times(action, device, times)

    seen = dequantise(packed, on)
    row("unpack the SPZ file", lambda: spz.unpack(asset.spz))
    row("data checks", lambda: problem_of(packed))
    row("dequantise on the device", lambda: dequantise(packed, on))
    row("the validator's changes", lambda: seen_by_validator(seen))
    row(
        "changes and 16 views", lambda: validator_views(seen, shapes.view_size), 1 if slow else runs
    )
    for name, part in _parts(scorer.networks, dtype, on).items():
        row(name, lambda part=part: part(views))  # type: ignore[misc]
    row("all networks, text task", lambda: scorer.measure(views, text))
    if not slow:
        row("score, text task", lambda: scorer.score(asset, text))
        row("score, image task", lambda: scorer.score(asset, image))
    row("rate a picture", lambda: scorer.rate(cutout, text))

    def rate_again() -> None:
        scorer.drop_caches()
        scorer.rate(cutout, text)

    row("rate, with a new prompt", rate_again)
    figures = {
        "machine": torch.cuda.get_device_name(on) if is_cuda else "cpu",
        "torch": torch.__version__,
        "dtype": str(dtype).removeprefix("torch."),
        "renderer": renderer,
        "gaussians": gaussians,
        "first_s": first_s,
        "rows": rows,
        "memory_mb": _memory(on, weights_mb) if is_cuda else {},
        "half": _half(scorer, views, text, image, on, shapes) if is_cuda else {},
    }
    _print(figures)
    write_figures(out, figures)
    return figures


def random_scorer(
    device: torch.device,
    dtype: torch.dtype,
    shapes: Shapes,
    *,
    accelerate: bool,
    backend: str = "inductor",
) -> ValidatorScorer:
    """Builds the validator's scorer with weights that are drawn, the same at every call."""
    with torch.device("meta"):
        quality = QualityNetwork(shapes.quality)
    clip = empty_clip(shapes.clip or published_config())
    for name, network in (("quality", quality), ("clip", clip)):
        network.load_state_dict(_drawn(name, network, device), strict=True, assign=True)
        network.to(device).eval().requires_grad_(False)
    networks = ValidatorNetworks(quality, ClipNetwork(clip, dtype), _lpips(device))
    return ValidatorScorer(
        networks,
        device,
        dtype,
        view_size=shapes.view_size,
        accelerate=accelerate,
        backend=backend,
    )


def _drawn(name: str, network: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """Values that keep the scale of what passes through a layer, the same at every call."""
    weights = {}
    for key, empty in network.state_dict().items():
        values = torch.empty(empty.shape, device=device)
        if values.ndim < 2:
            # Norms pass on what they get; the scales of branches are small.
            scale = 0.2 if key.endswith(("gamma", "lambda1")) else 1.0
            weights[key] = values.fill_(0.0 if key.endswith("bias") else scale)
            continue
        generator = torch.Generator(device).manual_seed(zlib.crc32(f"{name}.{key}".encode()))
        weights[key] = values.normal_(std=values[0].numel() ** -0.5, generator=generator)
    return weights


def _lpips(device: torch.device) -> Lpips:
    from safetensors.torch import save_file
    from torchvision.models import alexnet

    with torch.device("meta"):
        features = alexnet(weights=None).features
    drawn = _drawn("alexnet", features, torch.device("cpu"))
    with TemporaryDirectory() as folder:
        file = Path(folder) / "alexnet.safetensors"
        save_file({f"features.{key}": value for key, value in drawn.items()}, file)
        return Lpips.load(file).to(device)


def _parts(
    networks: ValidatorNetworks, dtype: torch.dtype, device: torch.device
) -> Mapping[str, Callable[[Tensor], Tensor]]:
    """What `Judge` does, part by part, each in a graph of its own where there are graphs."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    judge = Judge(networks, networks.clip, Ssim(), dtype)
    ssim = Ssim().to(device)

    def library(views: Tensor) -> Tensor:
        pictures = to_unit(views)
        found = structural_similarity_index_measure(
            pictures, pictures.roll(-1, 0), data_range=1.0, reduction="none"
        )
        assert isinstance(found, Tensor)
        return found

    parts: dict[str, Callable[[Tensor], Tensor]] = {
        "  quality": judge.qualities,
        "  quality, pictures alone": lambda v: for_quality(v, networks.quality.image_size),
        "  alignment": lambda v: networks.clip.encode(networks.clip.prepare(v)),
        "  SSIM": ssim,
        "  SSIM, torchmetrics": library,
        "  LPIPS": networks.lpips,
    }
    return {name: Captured(name.strip(), part) for name, part in parts.items()}


def _half(
    scorer: ValidatorScorer,
    views: Tensor,
    text: Task,
    image: Task,
    device: torch.device,
    shapes: Shapes,
) -> dict[str, Any]:
    """The numbers of all views in float16 and in float32, and how far they are apart at most."""
    precise = random_scorer(device, torch.float32, shapes, accelerate=False)
    found = {}
    for name, task in (("text", text), ("image", image)):
        half, single = (
            s.measure(views, task).reshape(4, -1).cpu().numpy() for s in (scorer, precise)
        )
        found[name] = {
            part: {
                "float32_mean": float(exact.mean()),
                "largest_difference": float(np.abs(rough - exact).max()),
            }
            for part, rough, exact in zip(
                ("quality", "cosine", "SSIM", "LPIPS"), half, single, strict=True
            )
        }
    return found


def _memory(device: torch.device, weights_mb: float) -> dict[str, float]:
    return {
        "weights": weights_mb,
        "peak_allocated": _megabytes(torch.cuda.max_memory_allocated(device)),
        "reserved": _megabytes(torch.cuda.memory_reserved(device)),
    }


def _megabytes(count: int) -> float:
    return count / 1e6


def _noise(size: int, device: torch.device) -> Tensor:
    generator = torch.Generator(device).manual_seed(0)
    shape = (_VIEWS, size, size, 3)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8, device=device)


def _tasks() -> tuple[TextTask, ImageTask]:
    from io import BytesIO

    from PIL import Image

    file = BytesIO()
    Image.radial_gradient("L").resize((512, 512)).convert("RGB").save(file, "PNG")
    image = ImageTask(id="benchmark", image=file.getvalue(), seed=0)
    return TextTask(id="benchmark", prompt="a red sphere on a stand", seed=0), image


def _cutout() -> Cutout:
    rgba = np.zeros((_CUTOUT_SIDE, _CUTOUT_SIDE, 4), np.uint8)
    rgba[50:-50, 50:-50] = 200, 40, 30, 255
    return Cutout(rgba[..., :3], rgba, rgba[..., :3])


def _seconds(action: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    action()
    wait(device)
    return time.perf_counter() - start


def _times(action: Callable[[], object], device: str, runs: int) -> Row:
    """Median and 95th percentile in milliseconds, after a warm-up if there are several runs."""
    for _ in range(WARM_UP if runs > 1 else 0):
        action()
    times = sorted(1000 * _seconds(action, device) for _ in range(runs))
    return {
        "median_ms": statistics.median(times),
        "p95_ms": times[min(len(times) - 1, int(0.95 * len(times)))],
    }


def _print(figures: dict[str, Any]) -> None:
    machine, renderer = figures["machine"], figures["renderer"]
    print(
        f"{machine}, torch {figures['torch']}, {figures['dtype']}, views rendered by {renderer}, "
        f"{figures['gaussians']:,} Gaussians"
    )
    print(f"{'':<28} {'median ms':>10} {'p95 ms':>10}")
    for name, row in figures["rows"].items():
        print(f"{name:<28} {row['median_ms']:>10.2f} {row['p95_ms']:>10.2f}")
    print("first calls: " + ", ".join(f"{k} {v:.1f} s" for k, v in figures["first_s"].items()))
    if figures["memory_mb"]:
        memory = ", ".join(f"{k} {v:,.0f} MB" for k, v in figures["memory_mb"].items())
        print(f"memory: {memory}")
    for task, parts in figures["half"].items():
        for part, found in parts.items():
            print(
                f"float16, {task} task, {part}: off by at most {found['largest_difference']:.1e} "
                f"(mean {found['float32_mean']:.4f})"
            )
