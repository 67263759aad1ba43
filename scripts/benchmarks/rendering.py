"""Holds both rasterisers against the validator's own pictures, and times them."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np

from generation.rendering import render_views
from generation.rendering.views import Backend
from protocol import ply
from protocol.gaussians import Float32Array, GaussianCloud
from scripts.benchmarks.figures import write_figures
from scripts.benchmarks.timing import median_ms

SCENES = ("axes", "discs")

_WORKLOADS: dict[Backend, tuple[tuple[int, ...], int, int]] = {
    "cpu": ((1, 5, 9, 13), 256, 50_000),
    "gsplat": (tuple(range(16)), 518, 120_000),
}
"""Views, size and Gaussians."""


def run(*, device: str, golden: Path, out: Path | None = None) -> dict[str, Any]:
    """Prints and returns PSNR against the golden views, and seconds per set of views.

    Args:
        device: "cpu" measures the CPU back end alone; "cuda" measures gsplat as well.
        golden: Folder with axes.ply.gz, axes.npz, discs.ply.gz and discs.npz.
        out: JSON file to write the same figures to, if any.

    Returns:
        For each back end: `psnr_db` (scene to view index to decibels), `views`, `size`,
        `gaussians` and `seconds` (median, after a warm-up) of the timed workload.

    Raises:
        SetupError: The device is CUDA and gsplat cannot render on it.
    """
    backends: list[Backend] = ["cpu"]
    if device.startswith("cuda"):
        backends.append("gsplat")
    figures: dict[str, Any] = {}
    for backend in backends:
        views, size, gaussians = _WORKLOADS[backend]
        figures[backend] = {
            "psnr_db": {name: golden_psnr(golden, name, backend) for name in SCENES},
            "views": len(views),
            "size": size,
            "gaussians": gaussians,
            "seconds": time_views(sphere(gaussians), views, size, backend),
        }
    _print_table(figures)
    write_figures(out, figures)
    return figures


def golden_psnr(golden: Path, name: str, backend: Backend) -> dict[int, float]:
    """Returns the PSNR, in dB, of each golden view of a scene; infinite for equal pictures."""
    cloud = ply.decode(gzip.decompress((golden / f"{name}.ply.gz").read_bytes()))
    with np.load(golden / f"{name}.npz") as reference:
        indices = [int(index) for index in reference["indices"]]
        expected = reference["views"].astype(np.float64)
    found = render_views(cloud, indices, backend=backend)
    errors = np.square(found - expected).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        psnr = 10.0 * np.log10(255.0**2 / errors)
    return dict(zip(indices, psnr.tolist(), strict=True))


def sphere(count: int, radius: float = 0.8) -> GaussianCloud:
    """An opaque sphere of evenly spread flat discs, in the manner of the miner's own clouds."""
    step = np.arange(count) + 0.5
    height = 1.0 - 2.0 * step / count
    angle = np.pi * (1.0 + 5.0**0.5) * step
    ring = np.sqrt(1.0 - height**2)
    normals = np.stack([ring * np.cos(angle), ring * np.sin(angle), height], axis=1)
    upper = np.where(normals[:, 2:] < 0, -normals, normals)
    # The shortest rotation from +z to the normal n is (1 + n_z, -n_y, n_x, 0), normalised.
    rotations = np.stack([1 + upper[:, 2], -upper[:, 1], upper[:, 0], 0 * step], axis=1)
    spacing = radius * np.sqrt(4 * np.pi / count)
    scales = np.log(np.tile([0.65 * spacing, 0.65 * spacing, 0.03 * spacing], (count, 1)))

    def single(array: Any) -> Float32Array:
        return np.ascontiguousarray(array, dtype=np.float32)

    return GaussianCloud(
        positions=single(radius * normals),
        log_scales=single(scales),
        rotations=single(rotations),
        opacity_logits=single(np.full(count, 5.0)),
        colors_dc=single(normals),
    )


def time_views(cloud: GaussianCloud, views: tuple[int, ...], size: int, backend: Backend) -> float:
    """Returns the median wall time in seconds of rendering `views`, result on the host."""
    return median_ms(lambda: render_views(cloud, views, size, backend=backend)) / 1000


def _print_table(figures: dict[str, Any]) -> None:
    print(f"{'back end':<9} {'scene':<7} PSNR in dB, by view")
    for backend, row in figures.items():
        for name, psnr in row["psnr_db"].items():
            cells = "  ".join(f"{view}: {value:.1f}" for view, value in psnr.items())
            print(f"{backend:<9} {name:<7} {cells}")
    for backend, row in figures.items():
        print(
            f"{backend}: {1000 * row['seconds']:.1f} ms for {row['views']} views of "
            f"{row['size']} px, {row['gaussians']:,} Gaussians"
        )
