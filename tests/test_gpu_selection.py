"""`pytest -m cuda` runs the tests of a GPU, imports no others, and fails where there is no GPU."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.conftest import pytest_configure, pytest_ignore_collect


def config(marks: str) -> Any:
    return SimpleNamespace(getoption={"markexpr": marks}.__getitem__)


def test_without_a_gpu_it_fails_instead_of_skipping_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(pytest.UsageError, match=r"no test was run: torch .* finds no CUDA device"):
        pytest_configure(config("cuda"))
    pytest_configure(config(""))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    pytest_configure(config("cuda"))


def test_files_without_a_test_for_a_gpu_are_not_imported(tmp_path: Path) -> None:
    marked, other, conftest = (
        tmp_path / name for name in ("test_a.py", "test_b.py", "conftest.py")
    )
    marked.write_text("needs_cuda = pytest.mark.cuda\n")
    other.write_text("import bittensor\n")
    conftest.touch()
    assert not pytest_ignore_collect(marked, config("cuda"))
    assert pytest_ignore_collect(other, config("cuda"))
    assert not pytest_ignore_collect(conftest, config("cuda"))
    assert not pytest_ignore_collect(other, config(""))
