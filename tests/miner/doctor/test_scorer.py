"""What the doctor says of the scorer: what is missing, and whether gsplat can be compiled."""

from importlib.metadata import PackagePath
from pathlib import Path
from types import SimpleNamespace

import pytest

from generation.presets import preset
from generation.settings import ScoringSettings
from miner.doctor.findings import Status, ok
from miner.doctor.scorer import judge_scorer, scoring_models

EMBEDDED, GPU80 = preset("embedded"), preset("gpu80")


def test_the_scorer_and_what_it_lacks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = EMBEDDED.model_copy(update={"scoring": ScoringSettings()})
    assert "one object for each task" in judge_scorer(without, (), tmp_path).found
    assert judge_scorer(EMBEDDED, (), tmp_path) == ok("embedded: shipped, it needs nothing")
    needed = [model.name for model in scoring_models(GPU80)]
    verdict = judge_scorer(GPU80, needed[1:], tmp_path)
    assert verdict.status is Status.FAILED
    assert f"{needed[0]} not downloaded" in verdict.found
    assert verdict.fix.startswith("python -m scripts.fetch_models --preset gpu80")
    elsewhere = judge_scorer(GPU80, needed[1:], Path("/my models"))
    assert "--preset gpu80 --models.dir '/my models'\n" in elsewhere.fix
    assert "--scoring.scorer none" in verdict.fix
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("miner.doctor.scorer.CUDA_FOLDER", tmp_path / "cuda")
    for module, program, found in (
        (None, None, "gsplat, which renders its views, is not installed"),
        ("gsplat", None, "nvcc is neither on the PATH nor in"),
        ("gsplat", "/usr/bin/nvcc", "a stand-in"),
    ):
        monkeypatch.setattr("miner.doctor.scorer.find_spec", lambda name, module=module: module)
        monkeypatch.setattr("miner.doctor.scorer.which", lambda name, program=program: program)
        assert found in judge_scorer(GPU80, needed, tmp_path).found
    monkeypatch.setattr("miner.doctor.scorer.which", lambda name: None)
    for name, status in (
        ("gsplat/csrc.so", Status.OK),
        ("gsplat/cuda/csrc/Null.h", Status.WARNING),
    ):
        installed = SimpleNamespace(files=[PackagePath(name)])
        monkeypatch.setattr(
            "miner.doctor.scorer.distribution", lambda name, installed=installed: installed
        )
        assert judge_scorer(GPU80, needed, tmp_path).status is status
    (tmp_path / "cuda" / "bin").mkdir(parents=True)
    (tmp_path / "cuda" / "bin" / "nvcc").touch()
    assert judge_scorer(GPU80, needed, tmp_path).status is Status.OK
