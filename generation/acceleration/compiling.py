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
        self._compiled = False
        for module in self._modules:
            module.compile(fullgraph=True, dynamic=False, backend=backend)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function; a module that cannot be compiled makes all of them eager."""
        try:
            if self._compiled:
                return self._function(*args, **kwargs)
            with warnings.catch_warnings():
                # Of what compilers tell each other, nothing is for an operator.
                warnings.simplefilter("ignore")
                result = self._function(*args, **kwargs)
            self._compiled = True
            return result
        except torch._dynamo.exc.TorchDynamoException as error:
            for module in self._modules:
                module._compiled_call_impl = None
            logger.warning(
                "{} runs eagerly, more slowly, because it could not be compiled: {}. The compiler "
                "needs a C compiler and Triton: apt install gcc python3-dev",
                self._name,
                str(error).strip().splitlines()[0],
            )
            return self._function(*args, **kwargs)


def keep_compiled_code(folder: Path) -> None:
    """Keeps compiled code in a folder, so that the next start does not compile again.

    A folder that the environment names already (TORCHINDUCTOR_CACHE_DIR) stays.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
