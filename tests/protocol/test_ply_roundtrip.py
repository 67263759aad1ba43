"""PLY files come back bit for bit, and every dialect that is read gives the same cloud."""

import numpy as np
import pytest
from hypothesis import given, settings

from protocol import ply
from protocol.gaussians import GaussianCloud
from tests.protocol.codec_data import (
    Table,
    assert_same,
    captured_warnings,
    cloud_of,
    clouds,
    golden,
    golden_cloud,
    read_table,
)

KINDS = {"<": "binary_little_endian", ">": "binary_big_endian", "": "ascii"}
TYPE_NAMES = {"f4": "float", "f8": "double", "u1": "uchar", "i4": "int"}


def written(
    table: Table,
    *,
    byte_order: str = "<",
    types: dict[str, str] | None = None,
    extra_lines: tuple[str, ...] = (),
) -> bytes:
    """Writes a table as PLY in any dialect, independently of the codec under test."""
    codes = {name: (types or {}).get(name, "f4") for name in table}
    count = len(next(iter(table.values())))
    header = [
        "ply",
        f"format {KINDS[byte_order]} 1.0",
        *extra_lines,
        f"element vertex {count}",
        *(f"property {TYPE_NAMES[code]} {name}" for name, code in codes.items()),
        "end_header",
    ]
    if byte_order:
        rows = np.empty(count, [(name, byte_order + code) for name, code in codes.items()])
        for name, column in table.items():
            rows[name] = column
        body = rows.tobytes()
    else:
        lines = [" ".join(repr(float(v)) for v in row) for row in zip(*table.values(), strict=True)]
        body = ("\n".join(lines) + "\n").encode()
    return "\n".join(header).encode() + b"\n" + body


@pytest.mark.parametrize("name", ["small", "edge"])
def test_encode_reproduces_the_golden_file(name: str) -> None:
    cloud = golden_cloud(name)
    assert ply.encode(cloud) == golden(f"{name}.ply")
    assert_same(ply.decode(golden(f"{name}.ply")), cloud)


@settings(max_examples=50)
@given(clouds())
def test_values_survive_bit_for_bit(cloud: GaussianCloud) -> None:
    for normals in (True, False):
        data = ply.encode(cloud, normals=normals)
        assert_same(ply.decode(data), cloud)
        assert ply.encode(ply.decode(data), normals=normals) == data


def test_normals_are_optional_zeros() -> None:
    cloud = golden_cloud("small")
    without = ply.encode(cloud, normals=False)
    assert b"property float nx" not in without
    header = golden("small.decoded.ply").partition(b"end_header\n")[0]
    assert without.partition(b"end_header\n")[0] == header
    assert_same(ply.decode(without), ply.decode(ply.encode(cloud)))


@pytest.mark.parametrize("byte_order", ["<", ">", ""])
@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_every_format_and_float_type(byte_order: str, kind: str) -> None:
    table = read_table("small.ply")
    data = written(table, byte_order=byte_order, types=dict.fromkeys(table, kind))
    assert_same(ply.decode(data), golden_cloud("small"))


@pytest.mark.parametrize("alias", [b"float32", b"float64"])
def test_sized_type_names(alias: bytes) -> None:
    table = read_table("small.ply")
    kind, plain = ("f4", b"float") if alias == b"float32" else ("f8", b"double")
    data = written(table, types=dict.fromkeys(table, kind))
    data = data.replace(b"property " + plain + b" ", b"property " + alias + b" ")
    assert_same(ply.decode(data), golden_cloud("small"))


@pytest.mark.parametrize("byte_order", ["<", ">", ""])
def test_any_order_and_unknown_properties(byte_order: str) -> None:
    table = read_table("small.ply")
    count = len(table["x"])
    mixed = {
        "red": np.full(count, 7, np.float32),
        **dict(reversed(table.items())),
        "label": np.full(count, -3, np.float32),
    }
    data = written(mixed, byte_order=byte_order, types={"red": "u1", "label": "i4"})
    assert_same(ply.decode(data), golden_cloud("small"))


@pytest.mark.parametrize("byte_order", ["<", ""])
def test_comments_are_skipped(byte_order: str) -> None:
    data = written(
        read_table("small.ply"),
        byte_order=byte_order,
        extra_lines=("comment end_header", "comment", "obj_info made by hand, naïvely"),
    )
    assert_same(ply.decode(data), golden_cloud("small"))


@pytest.mark.parametrize(("name", "count"), [("sh1", 9), ("sh3", 45)])
def test_harmonics_are_dropped_and_said_so(name: str, count: int) -> None:
    with captured_warnings() as messages:
        cloud = ply.decode(golden(f"{name}.ply"))
    assert_same(cloud, golden_cloud(name))
    assert len(messages) == 1
    assert f"dropped {count} f_rest" in messages[0]


@pytest.mark.parametrize("byte_order", ["<", ""])
def test_infinite_opacity_becomes_ten(byte_order: str) -> None:
    table = {name: column.copy() for name, column in read_table("small.ply").items()}
    table["opacity"][:4] = [np.inf, -np.inf, 50.0, -50.0]
    cloud = ply.decode(written(table, byte_order=byte_order))
    assert cloud.opacity_logits[:4].tolist() == [10.0, -10.0, 50.0, -50.0]
    assert_same(cloud, cloud_of(table))
