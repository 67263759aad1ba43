"""TorchInductor: compiled modules, the cache of compiled code, and the way back to eager."""

import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from torch import nn


class Compiled:
    """A function whose modules are compiled at its first call, or stay eager if they cannot be.

    Args:
        name: What the log calls it.
        function: Calls the modules.
        modules: Each is compiled alone, so that equal ones share their code and compile quickly.
        backend: What `torch.compile` compiles with.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        modules: Iterable[nn.Module],
        *,
        backend: str = "inductor",
    ) -> None:
        self._name = name
        self._function = function
        self._modules = tuple(modules)
        self._settled = False
        for module in self._modules:
            module.compile(fullgraph=True, dynamic=False, backend=backend)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function; a module that cannot be compiled makes all of them eager."""
        if self._settled:
            return self._function(*args, **kwargs)
        try:
            with warnings.catch_warnings():
                # Of what compilers tell each other, nothing is for an operator.
                warnings.simplefilter("ignore")
                result = self._function(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # Those of Dynamo, Inductor and Triton share no base class.
            problem = (str(error).strip() or type(error).__name__).splitlines()[0]
        else:
            self._settled = True
            return result
        for module in self._modules:
            module._compiled_call_impl = None
        # An error of the function itself comes up again here.
        result = self._function(*args, **kwargs)
        self._settled = True
        logger.warning(
            "{} runs eagerly, more slowly, because it could not be compiled: {}. If a compiler is "
            "missing: apt install gcc python3-dev",
            self._name,
            problem,
        )
        return result


def keep_compiled_code(folder: Path) -> None:
    """Keeps compiled code in a folder, so that the next start does not compile again.

    A folder that the environment names already (TORCHINDUCTOR_CACHE_DIR) stays. To be called
    before the first import of diffusers, which brings the compiler, which settles on a folder.
    """
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"{folder} cannot be written")
    except OSError as error:
        logger.warning(
            "compiled code is not kept, so the next start compiles again: {}. Point "
            "TORCHINDUCTOR_CACHE_DIR at a folder that can be written",
            error,
        )
        return
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
