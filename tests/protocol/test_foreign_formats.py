"""What is no PLY and no SPZ of ours is named, with the tool that converts it.

`playcanvas.*`, `niantic_v4.spz` and `khr_gaussian_splatting.glb` were written by splat-transform
2.7.1 from `niantic_v2_gzip.spz`.
"""

import gzip
import io
import struct
import zipfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import ply, spz
from protocol.errors import CodecError
from protocol.foreign_formats import describe
from tests.protocol.codec_data import golden

CASES = Path(__file__).parents[1] / "golden" / "cases"
SPLAT_ROW = struct.pack(
    "<3f3f4B4B", 0.1, 0.2, 0.3, 0.01, 0.01, 0.02, 9, 9, 9, 255, 255, 128, 128, 128
)
KSPLAT = bytes([0, 1, 0, 0]) + struct.pack("<IIIIH", 1, 1, 5, 5, 1) + bytes(5000)


def case(name: str) -> bytes:
    return (CASES / name).read_bytes()


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return file.getvalue()


def gzip_spz(version: int) -> bytes:
    return gzip.compress(struct.pack("<III4x", 0x5053474E, version, 5) + bytes(200))


FOREIGN: dict[str, tuple[bytes, str, str]] = {
    "Niantic 1": (gzip_spz(1), "gzip SPZ of Niantic's, version 1", "splat-transform"),
    "Niantic 2": (case("niantic_v2_gzip.spz"), "gzip SPZ of Niantic's, version 2", "splat-trans"),
    "Niantic 3": (gzip_spz(3), "gzip SPZ of Niantic's, version 3", "splat-transform"),
    "Niantic 4": (case("niantic_v4.spz"), "zstd SPZ of Niantic's, version 4", "splat-transform"),
    "bare SPZ": (golden("small.raw.bin"), "SPZ payload of version 2 without", "zstd FILE"),
    "compressed PLY": (case("playcanvas.compressed.ply"), "compressed PLY of", "splat-transform"),
    "SOG": (case("playcanvas.sog"), "SOG bundle", "splat-transform"),
    "SOG meta": (b'{"version": 2, "means": {}, "quats": {}}', "unbundled SOG", "splat-transform"),
    ".splat": (SPLAT_ROW * 100, ".splat file", "splat-transform"),
    ".ksplat": (KSPLAT, ".ksplat file", "splat-transform"),
    "SPX": (b"spx\x02" + bytes(200), "SPX of Reall3D", "gsbox"),
    "GLB splats": (case("khr_gaussian_splatting.glb"), "KHR_gaussian_splatting", "gsbox"),
    "GLB mesh": (b"glTF\x02\0\0\0" + bytes(40), "GLB mesh, not Gaussian", ""),
    "glTF": (b'{"asset": {"version": "2.0"}}', "glTF mesh, not Gaussian", ""),
    "gzip PLY": (gzip.compress(golden("small.ply")), "PLY file packed with gzip", "gunzip"),
    "gzip": (gzip.compress(b"words"), "gzip file", "unpack"),
    "damaged gzip": (b"\x1f\x8b\xff\xff\xff", "damaged gzip", ""),
    "zip": (zipped("model.ply"), "zip archive", "unpack"),
    "base64": (b"KLUv/SAABAA=", "base64 text of a zstd", "decode"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer", "git lfs pull"),
    "HTML": (b"\n<!DOCTYPE html><html>", "HTML page", ""),
    "HTML tag": (b"\xef\xbb\xbf<html><body>502", "HTML page", ""),
    "XML": (b"<?xml version='1.0'?><Error>", "XML text", ""),
    "JSON": (b' {"detail": "not found"}', "JSON text", ""),
    "text": (b"no model here", "text file", ""),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(20), "PNG picture", ""),
    "JPEG": (b"\xff\xd8\xff\xe0" + bytes(20), "JPEG picture", ""),
    "WebP": (b"RIFF\x10\0\0\0WEBPVP8 " + bytes(20), "WebP picture", ""),
    "nothing": (b"", "an empty file", ""),
    "noise": (b"\x07\x01\x02\x03", "no format known", ""),
}


@pytest.mark.parametrize(("data", "what", "tool"), FOREIGN.values(), ids=FOREIGN.keys())
def test_every_reader_names_the_format_and_the_tool(data: bytes, what: str, tool: str) -> None:
    assert what in describe(data)
    for decode in (ply.decode, spz.decode):
        with pytest.raises(CodecError) as caught:
            decode(data)
        assert what in str(caught.value)
        assert tool in str(caught.value)
        assert len(str(caught.value)) < 400


def test_a_format_inside_our_container_is_named() -> None:
    packed = zstandard.ZstdCompressor().compress(golden("small.ply"))
    with pytest.raises(CodecError, match="the zstd frame holds a PLY file"):
        spz.decode(packed)
    with pytest.raises(CodecError, match="the zstd frame holds bytes of no format known here"):
        spz.decode(zstandard.ZstdCompressor().compress(bytes(99)))


def test_formats_without_a_mark_are_known_by_their_name() -> None:
    odd = bytes(32 * 3)
    assert "splat" not in describe(odd)
    assert "a .splat file" in describe(odd, "Chair.SPLAT")
    assert "a .ksplat file" in describe(bytes(5000), "chair.ksplat")
    assert "splat" not in describe(bytes(33), "chair.splat")


def test_words_in_a_comment_do_not_make_a_compressed_ply() -> None:
    plain = golden("small.ply")
    spoken = plain.replace(b"element", b"comment element chunk 3, packed_position\nelement", 1)
    assert len(ply.decode(spoken)) == 500


def test_a_coloured_point_cloud_is_named() -> None:
    header = b"ply\nformat ascii 1.0\nelement vertex 1\n" + b"".join(
        b"property float %s\n" % name for name in (b"x", b"y", b"z", b"red", b"green", b"blue")
    )
    with pytest.raises(CodecError, match=r"no property f_dc_0; .*point cloud or mesh"):
        ply.decode(header + b"end_header\n0 0 0 1 1 1\n")


@settings(max_examples=300)
@given(st.sampled_from([data for data, _, _ in FOREIGN.values()]), st.binary(max_size=40))
def test_any_beginning_is_described_in_a_printable_phrase(start: bytes, rest: bytes) -> None:
    for data in (start[:10] + rest, start + rest, rest):
        said = describe(data, "x.splat")
        assert said.isprintable()
        assert said.isascii()
        assert len(said) < 200
