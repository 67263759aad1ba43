"""docs/score-log.md describes what the code writes: no field or code more, none less."""

import ast
import json
import re
from collections.abc import Iterator
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import get_args

import pytest

from generation.lift import BACK_ENDS, stages_of
from generation.presets import PRESETS
from miner.life import State
from miner.request import Outcome, ReasonCode
from miner.transports.gateway.endings import Ending
from miner.transports.pull.validators import Fate
from miner.transports.push.checks import CLOCK_AHEAD, CLOCK_BEHIND
from protocol.synapses import Feedback

ROOT = Path(__file__).parents[3]
DOCUMENT = (ROOT / "docs" / "score-log.md").read_text()
COMMON = {"ts", "unix", "event"}
SPREAD = {"outcome.feedback": set(Feedback.model_fields)}
"""What the code writes as `**values`."""


def names(cell: str) -> list[str]:
    """The words between backticks."""
    return re.findall(r"`([^`]+)`", cell)


def table(heading: str) -> list[list[str]]:
    """The rows of the first table under a heading, by cell."""
    lines = iter(DOCUMENT.splitlines())
    assert heading in lines, f"no heading {heading!r}"
    rows = [line for line in takewhile(lambda line: not line.startswith("#"), lines) if line]
    cells = [
        [cell.strip() for cell in row.strip("|").split(" | ")] for row in rows if row[0] == "|"
    ]
    return cells[2:]


def first_column(heading: str) -> list[str]:
    return [name for row in table(heading) for name in names(row[0])]


@cache
def calls() -> list[ast.Call]:
    """Every call in the code that may write to the score log."""
    files = [*(ROOT / "miner").rglob("*.py"), *(ROOT / "neurons").rglob("*.py")]
    trees = [ast.parse(file.read_text()) for file in files]
    return [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]


def written() -> Iterator[tuple[str, set[str]]]:
    """Event and fields of every line that the code writes."""
    for call in calls():
        match call:
            case ast.Call(
                func=ast.Attribute(attr="write", value=target),
                args=[ast.Constant(value=str(event))],
            ) if ast.unparse(target) in ("score_log", "self._score_log", "self"):
                fields: set[str] = set()
                for keyword in call.keywords:
                    spread = ast.unparse(keyword.value)
                    fields |= SPREAD[spread] if keyword.arg is None else {keyword.arg}
                yield event, fields


def test_every_event_and_its_fields_are_documented() -> None:
    documented = {name: set(names(row[2])) for row in table("## Events") for name in names(row[0])}
    documented["answered"] = set(first_column("## `answered`"))
    assert dict(written()) == documented
    assert len(list(written())) == len(documented)  # Every event is written in one place.


def test_every_line_has_the_documented_common_fields() -> None:
    assert set(first_column("## Every line")) == COMMON


def test_every_reason_code_is_documented() -> None:
    rows = [
        tuple(names(cell)[0] for cell in row[:2]) for row in table("### Outcomes and reason codes")
    ]
    assert len(set(rows)) == len(rows)
    assert {code for _, code in rows} == set(get_args(ReasonCode))
    assert {outcome for outcome, _ in rows} == set(get_args(Outcome))


def test_every_state_is_documented_in_order() -> None:
    assert first_column("### States") == [state.value for state in State]


def test_every_fate_is_documented() -> None:
    assert first_column("### Fates of a pulled task") == list(get_args(Fate))


def test_every_ending_is_documented() -> None:
    assert first_column("### Endings of a gateway's task") == list(get_args(Ending))


def test_every_code_of_a_refused_caller_is_documented() -> None:
    places = {"Refusal": 0, "Refused": 1}
    arguments = [
        call.args[places[call.func.id]]
        for call in calls()
        if isinstance(call.func, ast.Name) and call.func.id in places
    ]
    codes = {argument.value for argument in arguments if isinstance(argument, ast.Constant)}
    documented = first_column("### Codes of refused callers")
    assert set(documented) == codes | {CLOCK_AHEAD, CLOCK_BEHIND}
    assert len(set(documented)) == len(documented)


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_every_stage_is_documented(back_end: str) -> None:
    (timings,) = (row for row in table("## `answered`") if row[0] == "`timings`")
    for preset in PRESETS.values():
        # No preset refines.
        refine = preset.refine.model_copy(update={"steps": 10})
        settings = preset.model_copy(update={"refine": refine})
        stages = [stage.name for stage in stages_of(settings, back_end)]
        assert [name for name in names(timings[2]) if name in stages] == stages
    every = {stage.name for name in BACK_ENDS for stage in stages_of(settings, name)}
    assert set(names(timings[2])) == every


def test_the_examples_are_lines_as_documented() -> None:
    lines = [json.loads(line) for line in DOCUMENT.splitlines() if line.startswith("{")]
    fields = dict(written())
    assert {line["event"] for line in lines} == {"state_changed", "admitted", "answered"}
    for line in lines:
        assert line.keys() - COMMON <= fields[line["event"]]
