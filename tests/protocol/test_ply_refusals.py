"""A bad PLY file raises CodecError that names the line, or the row and property."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import ply
from protocol.errors import CodecError
from tests.protocol.codec_data import golden, golden_cloud, refused_with_peak

SMALL = golden("small.ply")
HEADER, _, BODY = SMALL.partition(b"end_header\n")
ASCII_HEADER = HEADER.replace(b"binary_little_endian", b"ascii").replace(b"vertex 500", b"vertex 2")
ASCII_ROW = b" ".join([b"0.5"] * 17)


def changed(old: bytes, new: bytes) -> bytes:
    assert HEADER.count(old) == 1
    return HEADER.replace(old, new) + b"end_header\n" + BODY


def ascii_file(*rows: bytes) -> bytes:
    return ASCII_HEADER + b"end_header\n" + b"\n".join(rows)


REFUSED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "line 1, '': no 'end_header'"),
    "wrong first line": (changed(b"ply\n", b"plx\n"), "line 1, 'plx': expected 'ply'"),
    "comment first": (b"comment\n" + SMALL, "line 1, 'comment': expected 'ply'"),
    "CR LF": (SMALL.replace(b"\n", b"\r\n", 4), r"line 1, .*LF alone"),
    "CR LF later": (changed(b"float y\n", b"float y\r\n"), r"line 5, .*LF alone"),
    "unknown format": (changed(b"little", b"middle"), "line 2, 'format binary_middle_endian 1.0'"),
    "format version": (changed(b"1.0", b"1.1"), "line 2, .*expected one of"),
    "two spaces": (changed(b"float y\n", b"float  y\n"), "line 5, 'property float  y'"),
    "trailing space": (changed(b"float y\n", b"float y \n"), "line 5, 'property float y '"),
    "blank line": (changed(b"property float y\n", b"\nproperty float y\n"), "line 5, ''"),
    "second element": (
        changed(b"rot_3\n", b"rot_3\nelement face 0\n"),
        "line 21, 'element face 0'",
    ),
    "face first": (changed(b"element vertex", b"element face 1\nelement vertex"), "line 3, "),
    "list property": (
        changed(b"float nx", b"list uchar int nx"),
        "line 7, 'property list uchar int nx': expected 'property TYPE NAME'",
    ),
    "unknown type": (changed(b"float nx", b"half nx"), "line 7, .*unknown type"),
    "property twice": (changed(b"float nx", b"float x"), "line 7, .*named twice"),
    "text after the count": (changed(b"500", b"500junk"), "line 3, .*expected 'element vertex N'"),
    "negative count": (changed(b"500", b"-1"), "line 3, "),
    "count is a word": (changed(b"500", b"many"), "line 3, "),
    "count of many digits": (changed(b"500", b"9" * 5000), "line 3, "),
    "no Gaussians": (changed(b"500", b"0"), "claims 0 Gaussians"),
    "too many Gaussians": (
        changed(b"500", b"10000001"),
        "claims 10000001 Gaussians; 1 to 1000000 are accepted",
    ),
    "no end_header": (HEADER + BODY, "no 'end_header'|line 21"),
    "endless header": (
        HEADER + b"comment more\n" * 10_000 + b"end_header\n" + BODY,
        "no 'end_header' within the first 65536 bytes",
    ),
    "integer position": (changed(b"float x\n", b"uchar x\n"), "property x has an integer type"),
    "body one byte short": (SMALL[:-1], r"33999 bytes, 500 rows of 68 bytes.*ends in row 499"),
    "no body": (HEADER + b"end_header\n", r"0 bytes, 500 rows .*row 0"),
    "surplus body": (SMALL + b"\0", r"34001 bytes, .* row 500"),
    "more f_rest than exist": (
        changed(
            b"rot_3\n", b"rot_3\n" + b"".join(b"property float f_rest_%d\n" % i for i in range(48))
        ),
        "48 f_rest properties",
    ),
    "f_rest not a multiple of 3": (
        changed(b"rot_3\n", b"rot_3\nproperty float f_rest_0\n"),
        "1 f_rest properties",
    ),
    "f_rest with a gap": (
        changed(
            b"rot_3\n",
            b"rot_3\n" + b"".join(b"property float f_rest_%d\n" % i for i in (*range(8), 9)),
        ),
        "9 f_rest properties.*without a gap",
    ),
    "ASCII row short": (ascii_file(ASCII_ROW, ASCII_ROW[:-4]), r"line 23 \(row 1\) has 16 values"),
    "ASCII row long": (
        ascii_file(ASCII_ROW + b" 1", ASCII_ROW),
        r"line 22 \(row 0\) has 18 values",
    ),
    "ASCII word": (
        ascii_file(ASCII_ROW, b"0 0 zero " + ASCII_ROW[12:]),
        r"line 23 \(row 1\), property z: 'zero' is not a number",
    ),
    "ASCII long word": (
        ascii_file(ASCII_ROW, b"7z" * 10_000 + b" " + ASCII_ROW[4:]),
        r"line 23 \(row 1\), property x: '7z7z.* is not a number",
    ),
    "ASCII row missing": (ascii_file(ASCII_ROW, b""), "1 lines, the header says 2"),
    "ASCII row too many": (ascii_file(*[ASCII_ROW] * 3), "3 lines, the header says 2"),
    "ASCII without body": (ascii_file(), "1 lines, the header says 2"),
    "ASCII NaN": (
        ascii_file(ASCII_ROW, b"0 nan 0 " + ASCII_ROW[12:]),
        "row 1, property y is nan; it must be a finite float32",
    ),
    "ASCII beyond float32": (
        ascii_file(b"1e39 " + ASCII_ROW[4:], ASCII_ROW),
        r"row 0, property x is 1e\+39",
    ),
}


@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_malformed_files_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(CodecError, match=message) as caught:
        ply.decode(data)
    assert len(str(caught.value)) < 400


REQUIRED = [
    *("x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
]


@pytest.mark.parametrize("name", REQUIRED)
def test_every_property_of_a_gaussian_is_required(name: str) -> None:
    with pytest.raises(CodecError, match=f"no property {name};"):
        ply.decode(changed(f"property float {name}\n".encode(), b"property float other\n"))


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_refused(name: str, value: float) -> None:
    names = HEADER.decode().split()[9::3]
    table = np.frombuffer(BODY, "<f4").reshape(500, 17).copy()
    table[321, names.index(name)] = value
    data = HEADER + b"end_header\n" + table.tobytes()
    if name == "opacity" and np.isinf(value):
        assert ply.decode(data).opacity_logits[321] == np.copysign(10.0, value)
    else:
        with pytest.raises(CodecError, match=rf"row 321, property {name} is {value}"):
            ply.decode(data)


def test_an_empty_cloud_is_not_written() -> None:
    with pytest.raises(CodecError, match="the cloud has 0"):
        ply.encode(golden_cloud("small").select(np.zeros(500, np.bool_)))


def test_max_points_is_the_limit() -> None:
    assert len(ply.decode(SMALL, max_points=500)) == 500
    with pytest.raises(CodecError, match="claims 500 Gaussians; 1 to 499 are accepted"):
        ply.decode(SMALL, max_points=499)


@pytest.mark.parametrize("kind", [b"binary_little_endian", b"ascii"])
def test_a_claimed_count_is_not_believed(kind: bytes) -> None:
    claim = changed(b"500", b"10000000").replace(b"binary_little_endian", kind)
    assert refused_with_peak(lambda: ply.decode(claim)) < 1 << 20


@pytest.mark.parametrize("lines", [1, 100_000])
def test_an_ascii_body_of_short_lines_takes_little_memory(lines: int) -> None:
    wide = b"".join(b"property float unused_%d\n" % i for i in range(2000))
    start = changed(b"500", b"%d" % lines).replace(b"binary_little_endian", b"ascii")
    start = start.partition(b"end_header")[0] + wide + b"end_header\n"
    peak = refused_with_peak(lambda: ply.decode(start + b"0\n" * 100_000))
    assert peak < 32 << 20


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_noise_raises_codec_error_only(noise: bytes) -> None:
    for start in (b"", b"ply\n", HEADER, ASCII_HEADER + b"end_header\n"):
        with pytest.raises(CodecError):
            ply.decode(start + noise)


@settings(max_examples=300)
@given(st.integers(0, len(HEADER) + 200), st.integers(1, 255))
def test_a_flipped_byte_gives_a_cloud_or_codec_error(index: int, change: int) -> None:
    damaged = bytearray(SMALL)
    damaged[index] ^= change
    with contextlib.suppress(CodecError):
        assert len(ply.decode(bytes(damaged))) == 500
