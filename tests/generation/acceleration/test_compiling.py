"""What can be compiled is, what cannot runs eagerly, and compiled code is kept."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from loguru import logger
from torch import Tensor, nn

from generation.acceleration.compiling import Compiled, keep_compiled_code


class _Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class _Uncompilable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return x * 2


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    torch._dynamo.reset()
    lines: list[str] = []
    sink = logger.add(lines.append, level="WARNING", format="{message}")
    yield lines
    logger.remove(sink)


def test_a_compiled_function_gives_the_same(warnings: list[str]) -> None:
    modules = nn.Sequential(_Doubled(), _Doubled())
    compiled = Compiled("four", modules, modules, backend="eager")
    assert compiled(torch.ones(2)).tolist() == [4.0, 4.0]
    assert all(module._compiled_call_impl is not None for module in modules)
    assert warnings == []


class _TwoRoundings(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * 1.1) * 1.3


def test_where_it_is_asked_for_compiled_code_rounds_as_eager_code(warnings: list[str]) -> None:
    if shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler")
    x = torch.linspace(0.1, 3.0, 1001).bfloat16()
    expected, found = _TwoRoundings()(x), []
    for rounds_as_eager in (False, True):
        torch._dynamo.reset()
        module = _TwoRoundings()
        compiled = Compiled("product", module, (module,), rounds_as_eager=rounds_as_eager)
        found.append(bool((compiled(x) == expected).all()))
    assert found == [False, True]
    assert warnings == []


def test_what_cannot_be_compiled_runs_eagerly_and_says_so_once(warnings: list[str]) -> None:
    modules = nn.Sequential(_Doubled(), _Uncompilable())
    compiled = Compiled("four", modules, modules, backend="eager")
    for _ in range(2):
        assert compiled(torch.ones(2)).tolist() == [4.0, 4.0]
    (line,) = warnings
    assert line.startswith("four runs eagerly, more slowly")
    assert "apt install" in line


def test_a_machine_without_a_compiler_runs_eagerly(
    warnings: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    compiled = Compiled("double", module := _Doubled(), (module,))
    assert compiled(torch.ones(2)).tolist() == [2.0, 2.0]
    assert len(warnings) == 1


def test_compiling_can_be_turned_off(warnings: list[str]) -> None:
    compiled = Compiled("double", module := _Doubled(), (module,), backend="eager")
    with torch._dynamo.config.patch(disable=True):  # What TORCH_COMPILE_DISABLE=1 sets.
        assert compiled(torch.ones(2)).tolist() == [2.0, 2.0]
    assert len(warnings) <= 1  # Older releases say nothing.


class _Sized(nn.Module):
    """Can be compiled, except for inputs of 3 values."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] == 3:
            torch._dynamo.graph_break()
        return x * 2


def test_a_later_shape_that_cannot_be_compiled_runs_eagerly(warnings: list[str]) -> None:
    compiled = Compiled("double", module := _Sized(), (module,), backend="eager")
    for size in (2, 3, 3, 2):
        assert compiled(torch.ones(size)).tolist() == [2.0] * size
    (line,) = warnings
    assert line.startswith("double runs eagerly, more slowly")


def test_many_shapes_are_compiled_and_each_only_once(warnings: list[str]) -> None:
    compilations: list[torch.Size] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        compilations.append(inputs[0].shape)
        return graph.forward

    compiled = Compiled("double", module := _Doubled(), (module,), backend=backend)
    sizes = list(range(2, 22))
    for size in sizes * 2:
        assert compiled(torch.ones(size)).tolist() == [2.0] * size
    assert [len(torch.ones(shape)) for shape in compilations] == sizes
    assert warnings == []


def test_errors_of_the_function_itself_are_not_hidden_and_leave_the_modules_compiled(
    warnings: list[str],
) -> None:
    module = _Doubled()

    def function(x: Tensor) -> Tensor:
        doubled: Tensor = module(x)
        return doubled / x.new_ones(2)

    compiled = Compiled("half", function, (module,), backend="eager")
    with pytest.raises(RuntimeError, match="size of tensor"):
        compiled(torch.ones(3))
    assert module._compiled_call_impl is not None
    assert compiled(torch.ones(2)).tolist() == [2.0, 2.0]
    assert warnings == []


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("tried to allocate 2 GiB"),
        RuntimeError("CUDA error: out of memory"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    ],
)
def test_an_error_of_the_device_says_nothing_about_the_compiler(
    warnings: list[str], error: Exception
) -> None:
    module = _Doubled()
    full = [True]

    def function(x: Tensor) -> Tensor:
        if full:
            raise error
        result: Tensor = module(x)
        return result

    compiled = Compiled("double", function, (module,), backend="eager")
    with pytest.raises(type(error)):
        compiled(torch.ones(2))
    full.clear()
    compiled(torch.ones(2))
    assert module._compiled_call_impl is not None
    assert warnings == []


def test_the_environment_has_the_last_word_on_where_compiled_code_lies(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    keep_compiled_code(tmp_path / "ours")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "ours")
    keep_compiled_code(tmp_path / "other")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "ours")


def test_a_folder_that_cannot_be_made_is_a_warning(
    warnings: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    (tmp_path / "file").touch()
    keep_compiled_code(tmp_path / "file" / "ours")
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    assert warnings[0].startswith("compiled code is not kept")
