"""What a document from outside may hold, and that everything else is refused with its place."""

import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.documents import (
    MAX_DEPTH,
    MAX_JSON_BYTES,
    MAX_YAML_BYTES,
    DocumentError,
    parse_json,
    parse_yaml,
    read_json,
    read_yaml,
)

ALIAS_BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)
)

integers = st.integers(-(2**63), 2**63 - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)
documents: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), integers, floats, st.text()),
    lambda deeper: st.lists(deeper) | st.dictionaries(st.text(), deeper),
    max_leaves=20,
)


@given(documents)
def test_json_comes_back_as_json_reads_it(document: Any) -> None:
    assert parse_json(json.dumps(document), "x") == document


@given(documents)
def test_yaml_comes_back_as_yaml_writes_it(document: Any) -> None:
    assert parse_yaml(yaml.safe_dump(document), "x") == document


@given(st.text())
@settings(max_examples=500)
def test_any_text_is_a_document_or_a_documented_error(text: str) -> None:
    for parse in (parse_yaml, parse_json, lambda t, n: parse_yaml(t, n, as_written=True)):
        try:
            parse(text, "x")
        except DocumentError as error:
            assert str(error).startswith("x")  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("written", "typed", "kept"),
    [
        ("007", None, "007"),
        ("0", 0, "0"),
        ("-12", -12, "-12"),
        ("no", False, "no"),
        ("On", True, "On"),
        ("1e3", "1e3", "1e3"),
        ("1.5e+3", 1500.0, "1.5e+3"),
        ("2024-01-31", "2024-01-31", "2024-01-31"),
        ("12:30", None, "12:30"),
        ("0x1F", None, "0x1F"),
        (".nan", None, ".nan"),
        ("-.inf", None, "-.inf"),
        ("9223372036854775808", None, "9223372036854775808"),
        ("'007'", "007", "007"),
        ("'~'", "~", "~"),
        ("~", None, None),
        ("null", None, None),
        ("=", "=", "="),
        ("a b", "a b", "a b"),
    ],
)
def test_scalars_by_yaml_s_rules_and_as_written(written: str, typed: object, kept: object) -> None:
    assert parse_yaml(f"v: {written}", "x", as_written=True) == {"v": kept}
    if typed is None and kept is not None:
        with pytest.raises(DocumentError, match=r"^x cannot be read: .*\(line 1, column 4\)$"):
            parse_yaml(f"v: {written}", "x")
    else:
        assert parse_yaml(f"v: {written}", "x") == {"v": typed}


@pytest.mark.parametrize(
    ("written", "reads_as"),
    [
        ("007", "a number"),
        ("1.5", "a number"),
        ("12:30", "a number"),
        ("no", "true or false"),
        ("2024-01-31", "a date"),
        ("'007'", None),
        ("a", None),
        ("1e3", None),
        ("|-\n  1", None),
    ],
)
def test_what_yaml_would_not_take_for_text_is_marked(written: str, reads_as: str | None) -> None:
    value = parse_yaml(f"v: {written}", "x", as_written=True)["v"]
    assert getattr(value, "reads_as", None) == reads_as


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        (ALIAS_BOMB, "line 1, column 4", "anchors (&) and aliases (*)"),
        ("a: *b", "line 1, column 4", "anchors (&) and aliases (*)"),
        ("a: 1\nb:\n  c: 2\n  c: 3", "line 4, column 3", "the key 'c' stands twice"),
        ("a: !!python/object/apply:os.system [id]", "line 1, column 4", "tags are not read"),
        ("a: !x b", "line 1, column 4", "tags are not read: !x"),
        ("a: 1\n---\nb: 2", "line 2, column 1", "a second document"),
        ("? [a]\n: b", "line 1, column 3", "a key is text"),
        ("a: [1,", "(line ", "is not YAML"),
        ("a: 1\n\tb: 2", "(line 2", "not YAML"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), f"column {MAX_DEPTH + 1}", "more than 32"),
        ("a: \x00", "x", "not YAML"),
        ("[" * 60_000, f"column {MAX_DEPTH + 1}", "more than 32"),
        ("- " * 30_000, f"column {2 * MAX_DEPTH + 1}", "more than 32"),
    ],
)
def test_yaml_outside_the_bounds_is_refused_with_its_place(
    text: str, place: str, reason: str
) -> None:
    started = time.thread_time()  # Other processes count for nothing.
    for as_written in (False, True):
        with pytest.raises(DocumentError) as caught:
            parse_yaml(text, "x", as_written=as_written)
        assert place in str(caught.value)
        assert reason in str(caught.value)
    assert time.thread_time() - started < 2.0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1,\n "a": 2}', "x cannot be read: the key 'a' stands twice"),
        ("{,", "(line 1, column 2)"),
        ("", "x cannot be read: it is not JSON: Expecting value (line 1, column 1)"),
        ("NaN", "x cannot be read: NaN is not a finite number"),
        ("[-Infinity]", "x cannot be read: -Infinity is not a finite number"),
        ("[1e999]", "x cannot be read: 1e999 is not a finite"),
        ("9" * 5000, "does not fit into 64 bits"),
        ("-9223372036854775809", "does not fit into 64 bits"),
        ('"\\ud800"', "half of a character"),
        ('{"\\udfff": 1}', "half of a character"),
        ("[" * 1_000_000, "x cannot be read: more than 32 mappings and lists"),
        ('{"a":' * 500_000, "x cannot be read: more than 32 mappings and lists"),
        ("[" * 33 + "]" * 33, "x cannot be read: more than 32 mappings and lists"),
    ],
)
def test_json_outside_the_bounds_is_refused(text: str, reason: str) -> None:
    with pytest.raises(DocumentError) as caught:
        parse_json(text, "x")
    assert reason in str(caught.value)


@pytest.mark.parametrize("parse", [parse_json, parse_yaml])
def test_the_depth_at_the_limit_is_read(parse: Callable[[str, str], Any]) -> None:
    document = parse("[" * MAX_DEPTH + "1" + "]" * MAX_DEPTH, "x")
    for _ in range(MAX_DEPTH):
        (document,) = document
    assert document == 1


@pytest.mark.parametrize(
    ("read", "limit"), [(read_yaml, MAX_YAML_BYTES), (read_json, MAX_JSON_BYTES)]
)
def test_files_are_read_up_to_their_limit(
    tmp_path: Path, read: Callable[[Path], Any], limit: int
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b'"' + b"a" * (limit - 2) + b'"')
    assert read(file) == "a" * (limit - 2)
    file.write_bytes(b'"' + b"a" * (limit - 1) + b'"')
    with pytest.raises(DocumentError, match=f"it has more than {limit:,} bytes"):
        read(file)
    with pytest.raises(DocumentError, match="more than"):
        read(Path("/dev/zero"))


@pytest.mark.parametrize("read", [read_yaml, read_json])
def test_files_that_cannot_be_read_say_why(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    with pytest.raises(DocumentError, match="absent cannot be read: No such file"):
        read(tmp_path / "absent")
    with pytest.raises(DocumentError, match="cannot be read: Is a directory"):
        read(tmp_path)
    with pytest.raises(DocumentError, match="cannot be read: embedded null"):
        read(Path("a\0b"))
    (tmp_path / "file").write_bytes(b"a\nb\xff")
    with pytest.raises(DocumentError, match=r"0xff is not UTF-8 \(line 2, column 2\)"):
        read(tmp_path / "file")
    (tmp_path / "\udcff").write_bytes(b"[")
    with pytest.raises(DocumentError, match=r"\\udcff"):
        read(tmp_path / "\udcff")


def test_a_byte_order_mark_is_no_part_of_a_document(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "file") == read_yaml(tmp_path / "file") == {"a": 1}


def test_the_largest_files_take_little_time_and_memory(tmp_path: Path) -> None:
    yaml_file, json_file = tmp_path / "y", tmp_path / "j"
    yaml_file.write_text("{" + ",".join(f"k{i:04x}: {i}" for i in range(5400)) + "}")
    json_file.write_text("[" + ",".join(['{"a": 1}'] * 450_000) + "]")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    read_yaml(yaml_file)
    assert time.process_time() - started < 1.0
    started = time.process_time()
    read_json(json_file)
    assert time.process_time() - started < 2.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000
