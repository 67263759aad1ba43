"""No file of a stranger's costs a decoder more than a second and 300 MB.

Each is decoded in a process of its own, since only a process knows what it held at most.
"""

import pytest
import zstandard

from protocol import ply, spz
from protocol.errors import CodecError
from protocol.gaussians import MAX_GAUSSIANS, MAX_GAUSSIANS_OF_A_FILE
from scripts.benchmarks import decoders
from tests.protocol.codec_data import golden, refused_with_peak

MOST_SECONDS, MOST_MIB = 1.0, 300.0
LARGE = {"PLY, binary, most Gaussians, 48 more", "PLY, binary, 2,000 more doubles"}
"""Files that take long to make; `python -m scripts.benchmark decoders` measures them."""


@pytest.mark.parametrize("name", sorted(decoders.FILES.keys() - LARGE))
def test_the_dearest_files_stay_within_bounds(name: str) -> None:
    figures = decoders.measure(decoders.FILES[name]())
    assert figures.seconds < MOST_SECONDS
    assert figures.growth_mib < MOST_MIB
    assert figures.peak_mib < MOST_MIB


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("SPZ of 10 million zeros", "the limit is 64000016"),
        ("zstd, RLE, 640 MB with size", "the limit is|declares 640000000"),
        ("zstd, 16 MiB of empty blocks", "more than 32768 blocks"),
        ("PLY, ASCII, 64 MiB", "the limit is 8388608; write the file as binary"),
    ],
)
def test_traps_are_refused_before_they_are_unpacked(name: str, said: str) -> None:
    data = decoders.FILES[name]()
    decode = ply.decode if data[:3] == b"ply" else spz.decode
    with pytest.raises(CodecError, match=said):
        decode(data)
    assert refused_with_peak(lambda: decode(data)) < 1 << 20


def test_a_local_tool_may_raise_the_limits() -> None:
    count = MAX_GAUSSIANS + 1
    packed = zstandard.ZstdCompressor().compress(decoders.spz_payload(count))
    with pytest.raises(CodecError, match=f"claims {count} Gaussians; 1 to {MAX_GAUSSIANS} are"):
        spz.decode(packed)
    with pytest.raises(CodecError, match=f"claims {count} Gaussians; 1 to {MAX_GAUSSIANS} are"):
        ply.decode(decoders.binary_ply(count))
    assert len(ply.decode(decoders.binary_ply(count), max_points=MAX_GAUSSIANS_OF_A_FILE)) == count
    assert len(spz.decode(packed, max_points=MAX_GAUSSIANS_OF_A_FILE)) == count
    text = decoders.ascii_ply(b"0", size=1000)
    with pytest.raises(CodecError, match="the ASCII PLY body has 980 bytes, the limit is 979"):
        ply.decode(text, max_text_bytes=979)
    assert len(ply.decode(text, max_text_bytes=980)) == 35


def test_a_tail_of_many_frames_is_refused() -> None:
    skippable = bytes([0x50, 0x2A, 0x4D, 0x18, 0, 0, 0, 0])
    assert len(spz.decode(golden("small.spz") + skippable * 16)) == 500
    with pytest.raises(CodecError, match="over 16 skippable or empty frames"):
        spz.decode(golden("small.spz") + skippable * 17)
