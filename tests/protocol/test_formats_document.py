"""What docs/formats.md shows is what happens."""

import re
from pathlib import Path

import numpy as np
import pytest
import zstandard

from generation.presets import preset
from generation.settings import MeshSettings
from protocol import ply, spz
from protocol.errors import CodecError
from protocol.gaussians import MAX_GAUSSIANS, MAX_GAUSSIANS_OF_A_FILE
from scripts.benchmarks.decoders import spz_payload
from tests.protocol.codec_data import golden, one_gaussian

DOCUMENT = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")


def test_the_worked_example_runs() -> None:
    examples = re.findall(r"```python\n(.*?)```", DOCUMENT, flags=re.DOTALL)
    assert len(examples) == 1
    exec(compile(examples[0], "docs/formats.md", "exec"), {})


def test_the_error_messages_are_current() -> None:
    small = golden("small.ply")
    table = np.frombuffer(small[-34_000:], "<f4").reshape(500, 17).copy()
    table[321, 11] = np.nan
    with pytest.raises(CodecError) as spaces:
        ply.decode(small.replace(b"float y", b"float  y"))
    with pytest.raises(CodecError) as not_a_number:
        ply.decode(small[:-34_000] + table.tobytes())
    with pytest.raises(CodecError) as far_away:
        spz.encode(one_gaussian(positions=[0.0, 5000.0, 0.0]))
    header = small.partition(b"end_header\n")[0]
    text = header.replace(b"binary_little_endian", b"ascii").replace(b"500", b"2")
    row = b" ".join([b"0.5"] * 17)
    with pytest.raises(CodecError) as underscore:
        ply.decode(text + b"end_header\n" + row + b"\n7 1_000" + row[7:])
    with pytest.raises(CodecError) as too_many:
        spz.decode(zstandard.ZstdCompressor().compress(spz_payload(1_000_001)))
    for caught in (spaces, not_a_number, underscore, too_many, far_away):
        assert str(caught.value) in DOCUMENT


def test_the_limits_are_current() -> None:
    small = preset("embedded").mesh
    for limit in (
        f"| Gaussians (`max_points`) | {MAX_GAUSSIANS:,} | {MAX_GAUSSIANS_OF_A_FILE:,},",
        f"| ASCII body (`max_text_bytes`) | {ply.MAX_TEXT_BYTES >> 20} MiB |",
        f"| Gaussians written | no limit | 1 to {spz.MAX_POINTS:,} |",
        f"`--mesh.triangles N` ({MeshSettings().triangles:,}, with `embedded` {small.triangles:,}; "
        "at least 100)",
        f"`--mesh.resolution N` ({MeshSettings().resolution}, with `embedded` {small.resolution}; "
        "8 to 512)",
    ):
        assert limit in DOCUMENT
