"""The soak: what it counts, and a short one against a real miner."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from protocol.errors import SetupError
from scripts.benchmark import main
from scripts.benchmarks.soak.callers import Asked
from scripts.benchmarks.soak.process import Sample
from scripts.benchmarks.soak.report import Figures, figures_of, plot, print_report

SAMPLES = [Sample(float(at), 500.0, 40, 20, 0.0) for at in range(100)]
HOSTILE = {"answers": [["noise", "400", 30]], "silent_median": 600}


def asked(task_id: str, *, code: str = "ok", taken_s: float = 0.5, wrong: bool = False) -> Asked:
    status = {"ok": 200, "no answer": 0, "refused": 401}.get(code, 503)
    return Asked(task_id, "axon", "text", 0.0, taken_s, status, code, wrong)


def counted(
    requests: list[Asked],
    lines: list[str],
    *,
    samples: list[Sample] = SAMPLES,
    tracebacks: tuple[str, ...] = (),
) -> Figures:
    return figures_of(
        requests,
        [{"event": "answered", "task_id": task} for task in lines],
        samples,
        tracebacks=tracebacks,
        hostile=HOSTILE,
        faults=[(1.0, "full disk")],
        seconds=100.0,
        exit_status=0,
    )


def kept(figures: Figures) -> bool:
    return print_report(figures, Console(quiet=True))


def test_a_clean_run_keeps_every_promise() -> None:
    figures = counted([asked("a"), asked("b")], ["a", "b", "hostile"])
    assert kept(figures)
    assert figures["good"]["on_time_share"] == 1.0
    assert figures["hostile"]["times_the_good"] == 15.0


@pytest.mark.parametrize("lines", [["a"], ["a", "b", "b"]])
def test_a_request_without_exactly_one_line_is_named(lines: list[str]) -> None:
    figures = counted([asked("a"), asked("b")], lines)
    assert figures["lines"]["requests_without_one_line"] == ["b"]
    assert not kept(figures)


@pytest.mark.parametrize(
    "late",
    [asked("a", code="predicted_late"), asked("a", taken_s=31.0), asked("a", code="no asset")],
)
def test_drops_late_answers_and_answers_without_an_asset_are_not_on_time(late: Asked) -> None:
    figures = counted([late, asked("b")], ["a", "b"])
    assert figures["good"]["on_time_share"] == 0.5
    assert not kept(figures)


def test_what_a_clock_hours_off_refuses_is_counted_apart() -> None:
    figures = counted([asked("a", code="refused", wrong=True), asked("b")], ["b"])
    assert figures["good"]["on_time_share"] == 1.0
    assert figures["good"]["while_the_clock_was_wrong"] == 1
    assert kept(figures)


def test_memory_that_grows_after_the_warm_up_is_a_broken_promise() -> None:
    def grown(megabytes: float) -> Figures:
        late = [Sample(90.0 + at, megabytes, 40, 20, 0.0) for at in range(10)]
        return counted([asked("a")], ["a"], samples=SAMPLES[:90] + late)

    assert kept(grown(520.0))
    assert grown(530.0)["memory_growth"] == pytest.approx(0.06)
    assert not kept(grown(530.0))


def test_a_traceback_is_a_broken_promise() -> None:
    assert not kept(counted([asked("a")], ["a"], tracebacks=("miner.txt: KeyError: 1",)))


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    plot(counted([asked("a")], ["a"]), tmp_path / "soak.png")
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SetupError, match="--plot"):
        plot(counted([asked("a")], ["a"]), tmp_path / "no" / "soak.png")


# Bittensor 10 reads pydantic's fields through an instance.
@pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute")
def test_a_short_soak_loses_nothing(tmp_path: Path) -> None:
    out = tmp_path / "soak.json"
    flags = ["--minutes", "0.1", "--pause", "0.8", "--hostile", "14", "--silent", "40"]
    main(["soak", *flags, "--json", str(out)])  # Its verdict depends on the machine's load.
    figures = json.loads(out.read_text())
    assert figures["good"]["asked"] >= 5
    assert figures["good"]["without_an_answer"] == 0
    assert figures["lines"]["requests_without_one_line"] == []
    assert figures["tracebacks"] == []
    assert figures["exit_status"] == 0
    assert len(figures["faults"]) == 12
    assert figures["hostile"]["pieces"] > 40
