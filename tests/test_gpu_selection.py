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


def test_what_holds_no_test_for_a_gpu_is_not_imported(tmp_path: Path) -> None:
    with_one, without = tmp_path / "a", tmp_path / "b"
    marked, other = with_one / "test_marked.py", without / "test_other.py"
    for folder in (with_one, without):
        folder.mkdir()
        (folder / "conftest.py").write_text("import bittensor\n")
    marked.write_text("needs_cuda = pytest.mark.cuda\n")
    other.write_text("import bittensor\n")
    assert not any(pytest_ignore_collect(path, config("cuda")) for path in (with_one, marked))
    assert all(pytest_ignore_collect(path, config("cuda")) for path in (without, other))
    assert not any(pytest_ignore_collect(path, config("")) for path in (without, other))
