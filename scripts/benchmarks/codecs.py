"""Times the PLY and SPZ codecs: `taskset -c 0 python -m scripts.benchmark codecs`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from protocol import ply, spz
from protocol.gaussians import Float32Array, GaussianCloud
from scripts.benchmarks.figures import write_figures
from scripts.benchmarks.timing import median_ms

SIZES = (25_000, 100_000, 200_000)

Encoder = Callable[[GaussianCloud], bytes]
Decoder = Callable[[bytes], GaussianCloud]


def run(*, out: Path | None = None) -> dict[str, dict[int, dict[str, float]]]:
    """Prints a table of medians on random clouds, which are the hardest case for zstd.

    Args:
        out: File to write the same figures to as JSON, if any.

    Returns:
        Format name to Gaussians to `encode_ms`, `decode_ms` (milliseconds) and `megabytes`
        (10^6 bytes).
    """
    codecs: dict[str, tuple[Encoder, Decoder]] = {
        "spz level 1": (partial(spz.encode, level=1), spz.decode),
        "ply": (ply.encode, ply.decode),
    }
    figures: dict[str, dict[int, dict[str, float]]] = {name: {} for name in codecs}
    print(f"{'format':<12} {'Gaussians':>9} {'encode ms':>10} {'decode ms':>10} {'MB':>7}")
    for count in SIZES:
        cloud = _random_cloud(count)
        for name, (encode, decode) in codecs.items():
            data = encode(cloud)
            row = {
                "encode_ms": median_ms(partial(encode, cloud)),
                "decode_ms": median_ms(partial(decode, data)),
                "megabytes": len(data) / 1e6,
            }
            figures[name][count] = row
            cells = f"{row['encode_ms']:>10.1f} {row['decode_ms']:>10.1f} {row['megabytes']:>7.2f}"
            print(f"{name:<12} {count:>9,} {cells}")
    write_figures(out, figures)
    return figures


def _random_cloud(count: int) -> GaussianCloud:
    random = np.random.default_rng(0)

    def uniform(low: float, high: float, *shape: int) -> Float32Array:
        return random.uniform(low, high, (count, *shape)).astype(np.float32)

    return GaussianCloud(
        positions=uniform(-1.0, 1.0, 3),
        log_scales=uniform(-9.0, -1.0, 3),
        rotations=random.normal(size=(count, 4)).astype(np.float32),
        opacity_logits=uniform(-6.0, 8.0),
        colors_dc=uniform(-2.0, 2.0, 3),
    )
