"""What a miner with traffic exposes is right, is documented, and is accepted by the tools."""

import re
import shutil
import subprocess
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from miner.metrics import PREFIX

DOCUMENT = (Path(__file__).parents[3] / "docs/metrics.md").read_text()
LIBRARY = ("process_", "python_")


def documented() -> dict[str, tuple[str, set[str]]]:
    """Type and labels of each series in the document, by its full name."""
    section = DOCUMENT.partition("## Series\n")[2].splitlines()
    rows = [
        row for row in takewhile(lambda row: not row.startswith("## "), section) if row[:1] == "|"
    ]
    found = {}
    for row in rows[2:]:
        name, kind, labels, meaning = (cell.strip() for cell in row.strip("|").split("|"))
        assert len(meaning) > 5
        found[f"{PREFIX}_{name.strip('`')}"] = (
            kind.split(",")[0],
            set(re.findall(r"`(\w+)`", labels)),
        )
    return found


def test_the_document_has_every_series_with_its_type_and_labels_and_no_other(
    exposition: SimpleNamespace,
) -> None:
    exposed = {}
    for family in parse_plain(exposition.text.text):
        if not family.name.startswith(LIBRARY):
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = set().union(*(sample.labels for sample in family.samples)) - {"le"}
            exposed[name] = family.type, labels
    assert exposed == documented()


def test_every_series_of_the_library_is_named_in_the_document(exposition: SimpleNamespace) -> None:
    others = {name for name in exposition.text.labels if not name.startswith(PREFIX)}
    assert others
    named = re.findall(r"`((?:process|python)_\w*)(\*?)`", DOCUMENT)
    for other in others:
        assert any(other == name or (star and other.startswith(name)) for name, star in named)


def test_both_formats_are_accepted_by_the_official_parsers(exposition: SimpleNamespace) -> None:
    plain = {family.name for family in parse_plain(exposition.text.text)}
    modern = {
        family.name + ("_info" if family.type == "info" else "")
        for family in parse_open(exposition.openmetrics)  # type: ignore[no-untyped-call]
    }
    assert plain == modern


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_wrong_with_the_metrics(exposition: SimpleNamespace) -> None:
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=exposition.text.text, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_totals_are_those_of_the_traffic(exposition: SimpleNamespace) -> None:
    value = exposition.text.value
    labels = {"outcome": "completed", "reason_code": "ok"}
    assert value("requests_total", transport="http", kind="text", **labels) == 1
    assert value("requests_total", transport="http", kind="image", **labels) == 1
    assert value("requests_total", transport="pull", kind="text", **labels) == 2
    assert value("requests_total", outcome="rejected", reason_code="bad_task") == 1
    assert value("requests_total", outcome="failed", reason_code="generation_error") == 1
    assert value("answers_owed_total", transport="http") == 3
    assert value("answers_in_time_total", transport="http") == 2
    assert value("stage_seconds_count", stage="prompt", kind="text") == 3
    assert value("stage_seconds_count", stage="lift", kind="image") == 1
    assert value("refused_total", transport="http", reason_code="bad_api_key") == 1
    assert value("feedback_total", fate="accepted") == value("feedback_total", fate="refused") == 1
    assert value("validator_feedback_total", uid="11", fate="accepted") == 1
    assert value("validator_feedback_total", uid="12", fate="accepted") == 0
    assert value("validator_fidelity_score", uid="11") == 0.4
    assert value("fidelity_score_sum") == 0.8
    assert 900 < value("validator_wait_seconds", uid="12") <= 1001
    assert value("registered") == 1
    assert value("engine_up", engine="local") == 1
    assert value("last_completed_timestamp_seconds") > 1.7e9
