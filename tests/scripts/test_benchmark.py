"""`scripts.benchmark` measures real runs and offers every benchmark by name."""

import importlib
import inspect
from pathlib import Path

import pytest

from scripts.benchmark import _parser, main


@pytest.mark.parametrize(
    "name",
    [
        *("pipeline", "parts", "triposr", "splats", "codecs", "rendering", "guard", "monitor"),
        *("quality", "engines", "dreamgaussian"),
    ],
)
def test_every_option_is_an_argument_of_the_benchmark(name: str) -> None:
    options = vars(_parser().parse_args([name]))
    run = importlib.import_module(f"scripts.benchmarks.{options.pop('benchmark')}").run
    inspect.signature(run).bind(**options)


def test_missing_weights_end_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pipeline", "--preset", "gpu80", "--models.dir", str(tmp_path)]) == 1
    assert "fix:" in capsys.readouterr().err


@pytest.mark.parametrize("runs", ["0", "-1", "many"])
def test_a_wrong_number_of_runs_is_refused(runs: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["pipeline", "--runs", runs])
    assert "at least 1" in capsys.readouterr().err
