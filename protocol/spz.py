"""SPZ, the compressed asset format that subnet 17 receives: quantised Gaussians in one zstd frame.

The payload has the layout of Niantic's SPZ version 2, but the container is a zstd frame where
Niantic's is gzip; the two kinds of file are not interchangeable. The reference for every formula
is the codec that the subnet's validators run (404-Repo/spz, `pyspz`).

    header      16 bytes little-endian: magic u32 "NGSP", version u32, points u32,
                SH degree u8, fractional bits u8, flags u8, reserved u8
    positions   N x 3 signed 24-bit little-endian, in steps of 1 / 2**fractional bits
    alphas      N x 1 u8, sigmoid(logit) in steps of 1/255
    colours     N x 3 u8, f_dc in steps of 1/38.25 around 127.5
    log-scales  N x 3 u8, steps of 1/16 from -10
    rotations   N x 3 u8, x y z of the unit quaternion with w >= 0, steps of 1/127.5
    SH          N x 3K u8, K = 0, 3, 8, 15 for degree 0..3

Quirks of the format that a reader of the bytes will meet:
    * Halves round away from zero (C's `round`), not to even as NumPy's `rint` does.
    * Positions are not clamped by the reference codec: they wrap. Here they are refused.
    * f_dc beyond +-3.3333, log-scales outside -10 .. 5.9375 and opacity logits beyond +-6.2324
      saturate. Alpha bytes 0 and 255 mean logits of -infinity and +infinity; decoding gives -10
      and +10, which encode to the same bytes.
    * w is rebuilt as sqrt(1 - x^2 - y^2 - z^2), so a rotation near w = 0 is the least precise, and
      the identity decodes to (0.99998, 0.0039, 0.0039, 0.0039).
"""

import struct
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import zstandard
from loguru import logger
from numpy.typing import NDArray

from protocol import _zstd_frame
from protocol.errors import CodecError
from protocol.foreign_formats import describe
from protocol.gaussians import LOGIT_LIMIT, MAX_GAUSSIANS, Float32Array, GaussianCloud

MAX_POINTS: Final = 10_000_000
"""The most Gaussians that are encoded; the validators' decoder takes as many."""

Bytes = NDArray[np.uint8]

_HEADER = struct.Struct("<IIIBBBB")
HEADER_BYTES: Final = _HEADER.size
"""Bytes of a payload before its positions."""
_MAGIC = 0x5053474E
_VERSION = 2
_FRACTIONAL_BITS = 12
_MAX_FRACTIONAL_BITS = 30
_MAX_SH_DEGREE = 3
_MAX_LEVEL = 22
_SH_BYTES = (0, 9, 24, 45)
_BASE_BYTES = 19
_THREADS = 4
_JOB_BYTES = 1 << 19  # the least that zstd takes
_CHUNK = 8192  # Gaussians at a time: a chunk's scratch arrays stay in the L2 cache

# Adding this and truncating is C's round(): with a plain 0.5 the largest float32 under 0.5 would
# become 1.
ALMOST_HALF: Final = np.nextafter(np.float32(0.5), np.float32(0.0))
"""The largest float32 under 0.5."""
POSITION_STEPS: Final = float(1 << _FRACTIONAL_BITS)
"""Steps of a position in one unit."""
POSITION_MIN: Final = -2048.0
"""The least coordinate that a file holds."""
POSITION_MAX: Final = 2048.0 - 1.0 / POSITION_STEPS
"""The largest coordinate that a file holds."""
LENGTH_MIN: Final = 1e-18
"""The least length of a rotation's quaternion that is encoded."""
LENGTH_MAX: Final = 1e18
"""The largest length of a rotation's quaternion that is encoded."""

_BYTE_VALUES = np.arange(256, dtype=np.float32)
COLORS: Final = (_BYTE_VALUES / np.float32(255.0) - np.float32(0.5)) / np.float32(0.15)
"""(256,) the f_dc of each byte value."""
LOG_SCALES: Final = _BYTE_VALUES / np.float32(16.0) - np.float32(10.0)
"""(256,) the log-scale of each byte value."""
COMPONENTS: Final = _BYTE_VALUES * np.float32(1.0 / 127.5) - np.float32(1.0)
"""(256,) the quaternion component x, y or z of each byte value."""


@dataclass(frozen=True, eq=False)
class PackedCloud:
    """The content of an SPZ file, still quantised; of a length that holds all Gaussians.

    Attributes:
        payload: Header and sections, uint8.
        count: N, the number of Gaussians.
        position_bytes: Bytes of a position: 9 are three fixed-point numbers of 24 bits, signed and
            little-endian; 6 are three half floats, in files of version 1.
        fractional_bits: A fixed-point position counts steps of 1 / 2**fractional_bits.
    """

    payload: Bytes
    count: int
    position_bytes: int
    fractional_bits: int

    def sections(self, payload: Any) -> tuple[Any, ...]:
        """Cuts a payload into positions, alphas, colours, log-scales and rotations.

        Args:
            payload: `payload`, as an array or a tensor of any device.

        Returns:
            Views: (N, position_bytes), (N,), (N, 3), (N, 3), (N, 3).
        """
        return _sections(payload, self.count, self.position_bytes)


def encode(cloud: GaussianCloud, *, level: int = 1) -> bytes:
    """Encodes a cloud as an SPZ file of SH degree 0, the content size written in its frame.

    Args:
        cloud: 1 to `MAX_POINTS` Gaussians; their order is kept.
        level: zstd level, 1 (fastest) to 22.

    Raises:
        CodecError: The cloud is empty or too large, a position lies outside [-2048, 2048), or a
            rotation is a quaternion without a usable length.
        ValueError: The level is out of range.
    """
    _require_level(level)
    return compress(_quantise(cloud), level=level)


def compress(data: Bytes, *, level: int = 1) -> bytes:
    """Compresses a payload into an SPZ file; `encode` does both, with the same bytes.

    Args:
        data: Header and sections, uint8, C-contiguous; see `payload`.
        level: zstd level, 1 (fastest) to 22.

    Raises:
        ValueError: The level is out of range.
    """
    _require_level(level)
    # Above a megabyte the frame is compressed in jobs side by side. Its bytes depend on the job
    # size, not on how many cores there are.
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level,
        source_size=len(data),
        write_content_size=True,
        threads=_THREADS if len(data) > 2 * _JOB_BYTES else 0,
        job_size=_JOB_BYTES,
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data.data)


def _require_level(level: int) -> None:
    if not 1 <= level <= _MAX_LEVEL:
        raise ValueError(f"the zstd level must be 1 to {_MAX_LEVEL}, got {level}")


def header(count: int) -> bytes:
    """Returns the header of a payload of SH degree 0.

    Args:
        count: Number of Gaussians.

    Raises:
        CodecError: It is not 1 to `MAX_POINTS`.
    """
    if not 1 <= count <= MAX_POINTS:
        raise CodecError(f"SPZ holds 1 to {MAX_POINTS} Gaussians, the cloud has {count}")
    return _HEADER.pack(_MAGIC, _VERSION, count, 0, _FRACTIONAL_BITS, 0, 0)


def alpha_bytes(logits: Float32Array) -> Bytes:
    """Returns the alpha byte (N,) of each opacity logit (N,)."""
    out = np.empty(len(logits), np.uint8)
    _store_alphas(logits, out)
    return out


def payload(cloud: GaussianCloud) -> bytes:
    """Quantises a cloud into the uncompressed SPZ payload, 16 + 19 N bytes.

    Raises:
        CodecError: As for `encode`.
    """
    return _quantise(cloud).tobytes()


def _quantise(cloud: GaussianCloud) -> Bytes:
    count = len(cloud)
    first = header(count)
    out = np.empty(_HEADER.size + _BASE_BYTES * count, np.uint8)
    out[: _HEADER.size] = np.frombuffer(first, np.uint8)
    positions, alphas, colors, scales, rotations = _sections(out, count, position_bytes=9)
    for start in range(0, count, _CHUNK):
        rows = slice(start, start + _CHUNK)
        _store_positions(cloud.positions[rows], positions[rows], first_row=start)
        _store_alphas(cloud.opacity_logits[rows], alphas[rows])
        _store_colors(cloud.colors_dc[rows], colors[rows])
        _store_scales(cloud.log_scales[rows], scales[rows])
        _store_rotations(cloud.rotations[rows], rotations[rows], first_row=start)
    return out


def decode(data: bytes, *, max_points: int = MAX_GAUSSIANS) -> GaussianCloud:
    """Decodes an SPZ file of version 1 or 2 and SH degree 0 to 3.

    A `GaussianCloud` carries degree 0 only: higher degrees are dropped, with a warning in the log.
    Flags and surplus payload bytes are ignored, as the reference decoder does.

    Args:
        data: One zstd frame, with or without its content size.
        max_points: The most Gaussians to accept. It also bounds what is allocated for the payload,
            to 64 bytes a Gaussian, whatever sizes the file claims.

    Returns:
        The cloud. Opacity logits are -10 and +10 where the file has alpha bytes 0 and 255;
        rotations have w >= 0 and length 1, or a little more where rounding took x y z past the
        unit sphere (at most sqrt(3), in a file that no encoder wrote).

    Raises:
        CodecError: The file is damaged, not this format, or larger than `max_points`.
    """
    packed = unpack(data, max_points=max_points)
    positions, alphas, colors, scales, rotations = packed.sections(packed.payload)
    return GaussianCloud(
        positions=(
            _load_positions(positions, packed.fractional_bits)
            if packed.position_bytes == 9
            else _load_half_positions(positions)
        ),
        log_scales=LOG_SCALES[scales],
        rotations=_load_rotations(rotations),
        opacity_logits=_LOGITS[alphas],
        colors_dc=COLORS[colors],
    )


def unpack(data: bytes, *, max_points: int = MAX_GAUSSIANS) -> PackedCloud:
    """Unpacks an SPZ file without dequantising it; see `decode`, which does both.

    Args:
        data: One zstd frame, with or without its content size.
        max_points: The most Gaussians to accept; bounds the memory, as for `decode`.

    Raises:
        CodecError: The file is damaged, not this format, or larger than `max_points`.
    """
    limit = _HEADER.size + (_BASE_BYTES + _SH_BYTES[-1]) * max_points
    body = _zstd_frame.unpack(data, limit=limit)
    version, count, sh_degree, fractional_bits = _read_header(body, max_points)
    position_bytes = 9 if version == _VERSION else 6
    expected = _HEADER.size + count * (position_bytes + _BASE_BYTES - 9 + _SH_BYTES[sh_degree])
    if len(body) < expected:
        raise CodecError(
            f"the SPZ payload has {len(body)} bytes; {count} Gaussians of SH degree {sh_degree} "
            f"take {expected}"
        )
    if sh_degree:
        logger.warning(
            "SPZ: dropped spherical harmonics (the file has degree {}); only f_dc is kept",
            sh_degree,
        )
    return PackedCloud(np.frombuffer(body, np.uint8), count, position_bytes, fractional_bits)


def _sections(raw: Any, count: int, position_bytes: int) -> tuple[Any, ...]:
    """Returns views of the five attribute arrays, each (N, bytes per Gaussian); alphas (N,)."""
    views = []
    offset = _HEADER.size
    for width in (position_bytes, 1, 3, 3, 3):
        views.append(raw[offset : offset + width * count].reshape(count, width))
        offset += width * count
    views[1] = views[1][:, 0]
    return tuple(views)


def _read_header(body: bytes, max_points: int) -> tuple[int, int, int, int]:
    """Returns (version, points, SH degree, fractional bits), each checked."""
    if len(body) < _HEADER.size:
        raise CodecError(f"the SPZ payload has {len(body)} bytes, its header alone {_HEADER.size}")
    magic, version, count, sh_degree, fractional_bits, _, _ = _HEADER.unpack_from(body)
    if magic != _MAGIC:
        raise CodecError(
            f"the SPZ magic is {magic:#010x}, expected {_MAGIC:#010x}; the zstd frame holds "
            f"{describe(body)}"
        )
    if version not in (1, _VERSION):
        raise CodecError(f"SPZ version {version} is not read; versions 1 and {_VERSION} are")
    if not 1 <= count <= max_points:
        raise CodecError(f"the SPZ header claims {count} Gaussians; 1 to {max_points} are accepted")
    if sh_degree > _MAX_SH_DEGREE:
        raise CodecError(
            f"the SPZ header claims SH degree {sh_degree}; 0 to {_MAX_SH_DEGREE} exist"
        )
    if fractional_bits > _MAX_FRACTIONAL_BITS:
        raise CodecError(
            f"the SPZ header claims {fractional_bits} fractional bits; "
            f"0 to {_MAX_FRACTIONAL_BITS} are accepted"
        )
    return version, count, sh_degree, fractional_bits


def _store_u8(values: Float32Array, out: Bytes) -> None:
    """Rounds non-negative values up to 255, halves up; overwrites `values`."""
    values += ALMOST_HALF
    out[...] = values


def _store_positions(positions: Float32Array, out: Bytes, first_row: int) -> None:
    if positions.min() < POSITION_MIN or positions.max() > POSITION_MAX:
        row, axis = np.argwhere((positions < POSITION_MIN) | (positions > POSITION_MAX))[0]
        raise CodecError(
            f"position {'xyz'[axis]} of row {first_row + row} is {positions[row, axis]}; SPZ holds "
            f"{POSITION_MIN:g} to {POSITION_MAX:.8g}, so scale the cloud down"
        )
    steps = positions * np.float32(POSITION_STEPS)
    steps += np.copysign(ALMOST_HALF, steps)
    integers = steps.astype("<i4").reshape(-1, 1).view(np.uint8)
    stored = out.reshape(-1, 3)
    for byte in range(3):  # five times as fast as copying three bytes at a time
        stored[:, byte] = integers[:, byte]


def _store_alphas(logits: Float32Array, out: Bytes) -> None:
    # Beyond +-20 the byte is 0 or 255 anyway and exp() would overflow.
    values = np.exp(-np.clip(logits, -20.0, 20.0))
    values += np.float32(1.0)
    np.divide(np.float32(255.0), values, out=values)
    _store_u8(values, out)


def _store_colors(colors: Float32Array, out: Bytes) -> None:
    # float64 with one rounding to float32 is what the reference's fused multiply-add gives.
    values = colors.astype(np.float64)
    values *= 38.25
    values += 127.5
    _store_u8(np.clip(values, 0.0, 255.0, out=values).astype(np.float32), out)


def _store_scales(log_scales: Float32Array, out: Bytes) -> None:
    values = np.clip(log_scales, -10.0, 5.9375)
    values += np.float32(10.0)
    values *= np.float32(16.0)
    _store_u8(values, out)


def _store_rotations(rotations: Float32Array, out: Bytes, first_row: int) -> None:
    w, x, y, z = columns = np.ascontiguousarray(rotations.T)
    with np.errstate(over="ignore"):
        length = np.sqrt(w * w + x * x + y * y + z * z)
    if not (length.min() >= LENGTH_MIN and length.max() <= LENGTH_MAX):
        row = int(np.argmax(~((length >= LENGTH_MIN) & (length <= LENGTH_MAX))))
        raise CodecError(
            f"rotation of row {first_row + row} is {rotations[row]}: its length {length[row]:g} "
            f"must be {LENGTH_MIN:g} to {LENGTH_MAX:g}, best 1"
        )
    # w is not stored, so q and -q must become the one with w >= 0; adding 0 makes -0.0 count as 0.
    values = columns[1:] / np.copysign(length, w + np.float32(0.0))
    values *= np.float32(127.5)
    values += np.float32(127.5)
    for axis in range(3):  # four times as fast as storing all three into their transpose
        _store_u8(values[axis], out[:, axis])


def _load_positions(raw: Bytes, fractional_bits: int) -> Float32Array:
    padded = np.zeros((len(raw), 3, 4), np.uint8)
    padded[:, :, 1:] = raw.reshape(-1, 3, 3)
    # The value sits in the upper three bytes: the arithmetic shift extends its sign.
    integers = padded.view("<i4")[:, :, 0] >> 8
    return integers.astype(np.float32) / np.float32(1 << fractional_bits)


def _load_half_positions(raw: Bytes) -> Float32Array:
    positions = raw.view("<f2").astype(np.float32)
    finite = np.isfinite(positions)
    if not finite.all():
        row, axis = np.argwhere(~finite)[0]
        raise CodecError(f"position {'xyz'[axis]} of row {row} is {positions[row, axis]}")
    return positions


def _load_rotations(raw: Bytes) -> Float32Array:
    rotations = np.empty((len(raw), 4), np.float32)
    xyz = rotations[:, 1:]
    xyz[...] = COMPONENTS[raw]
    squared_w = np.float32(1.0) - (xyz * xyz).sum(axis=1)
    rotations[:, 0] = np.sqrt(np.maximum(squared_w, np.float32(0.0)))
    return rotations


def _logit_table() -> Float32Array:
    alphas = np.arange(1, 255, dtype=np.float32) / np.float32(255.0)
    inner = np.log(alphas / (np.float32(1.0) - alphas))
    return np.concatenate([[-LOGIT_LIMIT], inner, [LOGIT_LIMIT]]).astype(np.float32)


_LOGITS = _logit_table()
