"""A number in the text of a PLY file is what every reader of the format takes for that number."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol import ply
from protocol.errors import CodecError
from tests.protocol.codec_data import golden

CASES = Path(__file__).parents[1] / "golden" / "cases"
HEADER = golden("small.ply").partition(b"end_header\n")[0]
ASCII_HEADER = HEADER.replace(b"binary_little_endian", b"ascii").replace(b"vertex 500", b"vertex 2")
ROW = b" ".join([b"0.5"] * 17)
DECIMAL = r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?"


def with_number(token: bytes, *, at: int = 2) -> bytes:
    """A file of two rows with the token as a value of the second."""
    values = ROW.split()
    values[at] = token
    return ASCII_HEADER + b"end_header\n" + ROW + b"\n" + b" ".join(values) + b"\n"


def test_an_underscore_is_refused_with_line_and_column() -> None:
    data = (CASES / "ascii_underscore_number.ply").read_bytes()
    lines = data.split(b"\n")
    (number,) = (i for i, line in enumerate(lines, 1) if b"1_000" in line)
    column = lines[number - 1].index(b"1_000") + 1
    with pytest.raises(CodecError) as caught:
        ply.decode(data)
    assert f"line {number} " in str(caught.value)
    assert f"'1_000' is not a number such as -1.5 or 2e-3 (column {column})" in str(caught.value)


@pytest.mark.parametrize(
    "token",
    [
        *("1_000", "1_0.5", "_1", "1_", "1e1_0", "infinity", "-Infinity", "INFINITY", "nan(1)"),
        *(
            "0x10",
            "0x1p3",
            "1p3",
            "+-1",
            "--1",
            "++1",
            "1,5",
            "1.000,5",
            "1.2.3",
            "1e",
            "e5",
            "1e+",
        ),
        *(".", "-", "+", "1d5", "1.5f", "1j", "true", "None", "½", "1e5.5", "1-2", "$1", "1'000"),
        *(
            "\uff11\uff12",
            "\u0663",
            "\U0001d7d9",
            "\u22121",
            "\u00a01",
            "1\u2028",
            "\x1b[31m1",
            "1\r",
            "1\x0b",
            "1\x85",
            "1\x00",
        ),
    ],
)
@pytest.mark.parametrize("at", [2, 4])  # a value of a Gaussian, and a normal, which is ignored
def test_what_only_python_or_c_reads_is_refused(token: str, at: int) -> None:
    with pytest.raises(
        CodecError, match=r"line 23 \(row 1\), property .*\(column \d+\)$"
    ) as caught:
        ply.decode(with_number(token.encode(), at=at))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "count",
    ["1_0", "\uff12", "\u0662", "+2", "2.0", "0x2", " 2", "2 ", "2e0", "", "-2", "1" * 5000],
)
def test_a_count_is_decimal_digits(count: str) -> None:
    data = ASCII_HEADER.replace(b"vertex 2", b"vertex " + count.encode())
    with pytest.raises(CodecError, match=r"line 3, .*: expected 'element vertex N'"):
        ply.decode(data + b"end_header\n" + ROW + b"\n" + ROW)


def nearest(token: str) -> np.float32:
    """The nearest float32, or an infinity if it is too large for one."""
    with np.errstate(over="ignore"):
        return np.float32(np.float64(token))


@example("3E38")
@example("-3.4028235e38")
@example("3.40282357e38")
@settings(max_examples=300)
@given(st.from_regex(DECIMAL, fullmatch=True, alphabet=st.characters(codec="ascii")))
def test_every_decimal_is_read_as_the_nearest_float(token: str) -> None:
    value = nearest(token)
    if not np.isfinite(value):
        with pytest.raises(CodecError, match="must be a finite float32"):
            ply.decode(with_number(token.encode()))
    else:
        assert ply.decode(with_number(token.encode())).positions[1, 2] == value


@settings(max_examples=500)
@given(st.text(alphabet="0123456789+-.eE_naifNAIFxty,", min_size=1, max_size=8))
def test_a_token_is_a_decimal_or_refused(token: str) -> None:
    data = with_number(token.encode())
    if re.fullmatch(DECIMAL, token) and np.isfinite(nearest(token)):
        assert ply.decode(data).positions[1, 2] == nearest(token)
    else:
        with pytest.raises(CodecError):
            ply.decode(data)


@pytest.mark.parametrize("token", [b"nan", b"-NaN", b"inf", b"-Inf"])
def test_nan_and_inf_are_numbers_that_a_position_cannot_be(token: bytes) -> None:
    with pytest.raises(CodecError, match=r"PLY row 1, property z is .*must be a finite float32"):
        ply.decode(with_number(token))
    assert len(ply.decode(with_number(token, at=4))) == 2


@pytest.mark.parametrize("separator", [b"\t", b"  ", b" \t "])
def test_values_are_parted_by_spaces_or_tabs(separator: bytes) -> None:
    body = separator.join(ROW.split())
    data = ASCII_HEADER + b"end_header\n" + body + b"\n " + body + b" "
    assert (ply.decode(data).positions == 0.5).all()


@pytest.mark.parametrize("row", [0, 20_000, 39_999])
def test_the_line_is_right_beyond_the_first_piece(row: int) -> None:
    lines = [ROW] * 40_000
    lines[row] = ROW[:-3] + b"0_5"
    header = ASCII_HEADER.replace(b"vertex 2", b"vertex 40000")
    with pytest.raises(CodecError, match=rf"line {22 + row} \(row {row}\), .*'0_5'"):
        ply.decode(header + b"end_header\n" + b"\n".join(lines))
    lines[row] = ROW[:-4]
    with pytest.raises(CodecError, match=rf"line {22 + row} \(row {row}\) has 16 values"):
        ply.decode(header + b"end_header\n" + b"\n".join(lines))
    lines[row] = b"7 " + ROW[4:]
    cloud = ply.decode(header + b"end_header\n" + b"\n".join(lines))
    assert np.flatnonzero(cloud.positions[:, 0] == 7).tolist() == [row]


def test_a_line_without_end_is_refused() -> None:
    with pytest.raises(CodecError, match="line 22 is longer than 524288 bytes"):
        ply.decode(ASCII_HEADER + b"end_header\n" + b"1 " * 600_000 + b"\n" + ROW)


@pytest.mark.parametrize(
    "name", ["\x1b[2J\x1b[31mred", "a\x07b", "name\x00", "é", "\u202egnp", "x\x9b31m", "a\x7f"]
)
@pytest.mark.parametrize("place", ["extra", "instead of x", "type", "comment"])
def test_control_characters_of_a_header_reach_no_terminal(name: str, place: str) -> None:
    line = {
        "extra": f"property float x\nproperty float {name}",
        "instead of x": f"property float {name}",
        "type": f"property {name} x",
        "comment": f"comment {name}\nproperty float {name} x",
    }[place]
    data = HEADER.replace(b"property float x", line.encode())
    with pytest.raises(CodecError) as caught:
        ply.decode(data + b"end_header\n" + bytes(500 * 72))
    assert str(caught.value).isprintable()
