"""Foreign text is harmless to a terminal and fits its place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a red car", "a red car"),
        ("grüße 🚗", "grüße 🚗"),
        ("a\r\n\tb", "a b"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\ud800", "\\ud800"),
        ("\x9b31m", "\\x9b31m"),
        ("[/x]", "[/x]"),
        ("", ""),
    ],
)
def test_control_characters_are_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_long_text_ends_with_dots() -> None:
    assert printable("x" * 201) == "x" * 197 + "..."
    assert printable("x" * 200) == "x" * 200
    assert len(printable("x" * 10_000_000)) == 200


@given(st.text(st.characters(), max_size=300), st.integers(3, 250))
def test_any_text_is_one_printable_line_within_its_limit(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert len(shown) <= limit
    assert shown.isprintable()
    shown.encode("utf-8")
