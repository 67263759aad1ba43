"""What docs/formats.md shows is what happens."""

import re
from pathlib import Path

import numpy as np
import pytest

from protocol import ply, spz
from protocol.errors import CodecError
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
    for caught in (spaces, not_a_number, far_away):
        assert str(caught.value) in DOCUMENT
