"""Golden files, read without the codecs under test, and what several codec tests share."""

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from loguru import logger

from protocol.errors import CodecError
from protocol.gaussians import Float32Array, GaussianCloud

GOLDEN = Path(__file__).parents[1] / "golden" / "spz"
HEADER_BYTES = 16
BYTES_PER_GAUSSIAN = 19

Table = dict[str, Float32Array]


def golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


def read_table(name: str) -> Table:
    """Columns of a golden PLY file, whose layout is known to be plain little-endian float32."""
    header, _, body = golden(name).partition(b"end_header\n")
    names = [
        line.split()[2].decode() for line in header.splitlines() if line.startswith(b"property")
    ]
    rows = np.frombuffer(body, "<f4").reshape(-1, len(names))
    return {column: rows[:, i] for i, column in enumerate(names)}


def cloud_of(table: Table) -> GaussianCloud:
    """The table as a cloud, infinite opacity logits as -10 and +10."""

    def stacked(*names: str) -> Float32Array:
        return np.stack([table[name] for name in names], axis=1)

    opacity = table["opacity"]
    infinite = np.isinf(opacity)
    return GaussianCloud(
        positions=stacked("x", "y", "z"),
        log_scales=stacked("scale_0", "scale_1", "scale_2"),
        rotations=stacked("rot_0", "rot_1", "rot_2", "rot_3"),
        opacity_logits=np.where(infinite, np.copysign(np.float32(10.0), opacity), opacity),
        colors_dc=stacked("f_dc_0", "f_dc_1", "f_dc_2"),
    )


def golden_cloud(name: str) -> GaussianCloud:
    return cloud_of(read_table(f"{name}.ply"))


def one_gaussian(**changes: list[float]) -> GaussianCloud:
    values: dict[str, list[float]] = {
        "positions": [0.0, 0.0, 0.0],
        "log_scales": [-5.0, -5.0, -5.0],
        "rotations": [1.0, 0.0, 0.0, 0.0],
        "colors_dc": [0.0, 0.0, 0.0],
        **changes,
    }
    attributes = {name: np.array([row], np.float32) for name, row in values.items()}
    return GaussianCloud(opacity_logits=np.array([2.0], np.float32), **attributes)


def assert_same(actual: GaussianCloud, expected: GaussianCloud) -> None:
    for (name, left), (_, right) in zip(actual.arrays(), expected.arrays(), strict=True):
        np.testing.assert_array_equal(left, right, err_msg=name)


@contextmanager
def captured_warnings() -> Iterator[list[str]]:
    messages: list[str] = []
    sink = logger.add(messages.append, level="WARNING", format="{message}")
    try:
        yield messages
    finally:
        logger.remove(sink)


def _floats(count: int, columns: int, least: float, most: float) -> st.SearchStrategy[Float32Array]:
    low, high = float(np.float32(least)), float(np.float32(most))
    return arrays(np.float32, (count, columns), elements=st.floats(low, high, width=32))


def refused_with_peak(decode: Callable[[], object]) -> int:
    """Returns the most bytes held at once while `decode` raised CodecError."""
    tracemalloc.start()
    try:
        with pytest.raises(CodecError):
            decode()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@st.composite
def clouds(draw: st.DrawFn, *, most: int = 20) -> GaussianCloud:
    """Clouds whose every value lies inside the range that SPZ quantises without saturating."""
    count = draw(st.integers(1, most))
    rotations = draw(_floats(count, 4, -2.0, 2.0))
    rotations[np.linalg.norm(rotations, axis=1) < 1e-3] = (1.0, 0.0, 0.0, 0.0)
    return GaussianCloud(
        positions=draw(_floats(count, 3, -2048.0, 2048.0 - 1.0 / 4096.0)),
        log_scales=draw(_floats(count, 3, -10.0, 5.9375)),
        rotations=rotations,
        opacity_logits=draw(_floats(count, 1, -12.0, 12.0))[:, 0],
        colors_dc=draw(_floats(count, 3, -3.3333, 3.3333)),
    )
