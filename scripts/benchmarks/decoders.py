"""Time and memory of the most expensive files that decoders accept, and of traps they refuse.

`python -m scripts.benchmark decoders`. Each file is decoded in a process of its own, with the
limits that hold for the bytes of strangers.
"""

import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import zstandard

from protocol.gaussians import MAX_GAUSSIANS
from protocol.ply import MAX_TEXT_BYTES
from scripts.benchmarks.figures import write_figures

_NAMES = "x y z f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3"
_MIB = 1 << 20
_CHILD = """
import re, sys, time
from protocol import ply, spz
from protocol.errors import CodecError
from scripts.benchmarks.figures import write_figures
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
data = open(sys.argv[1], "rb").read()
decode = ply.decode if data[:3] == b"ply" else spz.decode
before, start, outcome = peak(), time.process_time(), ""
try:
    outcome = f"{len(decode(data))} Gaussians"
except CodecError as error:
    outcome = f"refused: {error}"
print(time.process_time() - start, peak() - before, peak(), outcome, sep="\\t")
"""


@dataclass(frozen=True)
class Figures:
    """What decoding one file took.

    Attributes:
        megabytes: Size of the file, in 2^20 bytes.
        seconds: Processor time of the decoder, which uses one thread.
        growth_mib: By how much the process grew meanwhile.
        peak_mib: The most that the process held, with Python, NumPy and the file.
        outcome: How many Gaussians it gave, or why it was refused.
    """

    megabytes: float
    seconds: float
    growth_mib: float
    peak_mib: float
    outcome: str


def run(*, out: Path | None = None) -> dict[str, Figures]:
    """Prints a table of `FILES`.

    Args:
        out: File to write the same figures to as JSON, if any.
    """
    print(f"{'file':<42} {'MiB':>7} {'s':>6} {'grew MiB':>9} {'peak MiB':>9}  outcome")
    figures = {}
    for name, build in FILES.items():
        found = figures[name] = measure(build())
        print(
            f"{name:<42} {found.megabytes:>7.2f} {found.seconds:>6.2f} {found.growth_mib:>9.0f} "
            f"{found.peak_mib:>9.0f}  {found.outcome[:60]}"
        )
    write_figures(out, {name: asdict(found) for name, found in figures.items()})
    return figures


def measure(data: bytes) -> Figures:
    """Decodes a file in a fresh process."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, file.name],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
    seconds, growth, peak, outcome = done.stdout.rstrip("\n").split("\t")
    return Figures(len(data) / _MIB, float(seconds), float(growth), float(peak), outcome)


def spz_payload(count: int, degree: int = 0, *, noise: bool = False) -> bytes:
    """A payload of `count` Gaussians, all zeros or noise."""
    size = count * (19 + (0, 9, 24, 45)[degree])
    body = np.random.default_rng(0).bytes(size) if noise else bytes(size)
    return struct.pack("<IIIBBBB", 0x5053474E, 2, count, degree, 12, 0, 0) + body


def rle_frame(size: int, *, content_size: int | None = None) -> bytes:
    """A zstd frame that stands for `size` zero bytes, 128 KiB in every four."""
    blocks = max(1, size // (128 * 1024))
    block = (128 * 1024 << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    last = (128 * 1024 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    head = b"\x28\xb5\x2f\xfd"
    if content_size is None:
        head += bytes([0, 9 << 3])
    else:
        head += bytes([0b1100_0000, 9 << 3]) + struct.pack("<Q", content_size)
    return head + block * (blocks - 1) + last


def empty_blocks(size: int) -> bytes:
    """A zstd frame of `size` bytes that holds nothing, in blocks of three bytes."""
    return b"\x28\xb5\x2f\xfd" + bytes([0, 9 << 3]) + bytes(size - 9) + b"\x01\x00\x00"


def ply_header(count: int, kind: str, *, more: int = 0, scalar: str = "float") -> bytes:
    """The header of a PLY file with `more` properties that are ignored."""
    names = [*_NAMES.split(), *(f"unused_{i}" for i in range(more))]
    lines = "".join(f"property {scalar} {name}\n" for name in names)
    return f"ply\nformat {kind} 1.0\nelement vertex {count}\n{lines}end_header\n".encode()


def ascii_ply(token: bytes, *, more: int = 0, size: int = MAX_TEXT_BYTES) -> bytes:
    """An ASCII PLY whose body, as large as allowed, repeats one number."""
    line = b" ".join([token] * (14 + more)) + b"\n"
    count = min(MAX_GAUSSIANS, size // len(line))
    return ply_header(count, "ascii", more=more) + line * count


def binary_ply(count: int, *, more: int = 0, scalar: str = "float") -> bytes:
    """A binary PLY of zeros."""
    size = {"float": 4, "double": 8}[scalar]
    header = ply_header(count, "binary_little_endian", more=more, scalar=scalar)
    return header + bytes(count * size * (14 + more))


def packed(payload: bytes, level: int = 19) -> bytes:
    """A payload as a zstd frame, as SPZ files are."""
    return zstandard.ZstdCompressor(level=level).compress(payload)


FILES: Mapping[str, Callable[[], bytes]] = {
    "SPZ, most Gaussians, zeros": lambda: packed(spz_payload(MAX_GAUSSIANS)),
    "SPZ, most Gaussians, degree 3, zeros": lambda: packed(spz_payload(MAX_GAUSSIANS, 3)),
    "SPZ, most Gaussians, degree 3, noise": lambda: packed(
        spz_payload(MAX_GAUSSIANS, 3, noise=True), 1
    ),
    "SPZ of 10 million zeros": lambda: packed(spz_payload(10_000_000), 3),
    "SPZ of 10 million zeros, degree 3": lambda: packed(spz_payload(10_000_000, 3), 3),
    "zstd, RLE, 640 MB without size": lambda: rle_frame(640_000_000),
    "zstd, RLE, 640 MB with size": lambda: rle_frame(640_000_000, content_size=640_000_000),
    "zstd, 16 MiB of empty blocks": lambda: empty_blocks(16 * _MIB),
    "PLY, binary, most Gaussians": lambda: binary_ply(MAX_GAUSSIANS),
    "PLY, binary, most Gaussians, 48 more": lambda: binary_ply(MAX_GAUSSIANS, more=48),
    "PLY, binary, 2,000 more doubles": lambda: binary_ply(8_000, more=2_000, scalar="double"),
    "PLY, ASCII, short numbers": lambda: ascii_ply(b"0"),
    "PLY, ASCII, hard numbers": lambda: ascii_ply(b"1e-300"),
    "PLY, ASCII, long numbers": lambda: ascii_ply(b"0.12345678901234567"),
    "PLY, ASCII, 2,014 properties": lambda: ascii_ply(b"0", more=2_000),
    "PLY, ASCII, 64 MiB": lambda: ascii_ply(b"0", size=64 * _MIB),
}
