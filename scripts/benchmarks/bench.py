"""What the parts of `scripts.benchmark parts` share: settings, inputs, ways of running."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from generation.acceleration.compiling import Compiled
from generation.acceleration.graphs import Captured
from generation.settings import GenerationSettings, TextToImageSettings
from scripts.benchmarks import full_size

Action = Callable[[], object]
Way = frozenset[str]
Actions = Action | Mapping[int, Action] | Mapping[str, Action]
"""What is timed of a way: one action, or several by number of pictures at once or by name."""
Prepare = Callable[["Bench", Way], Actions]
Parts = Mapping[str, tuple[Prepare, tuple[str, ...]]]
"""Parts by name: how to prepare one, and in which ways it is run."""

EAGER, CAPTURED, COMPILED, BOTH = "eager", "captured", "compiled", "compiled, captured"


@dataclass(frozen=True)
class Bench:
    """What all parts share.

    Attributes:
        settings: The preset, on the device that is measured.
        sizes: Shapes of the networks.
        folder: For files of networks.
        backend: What `torch.compile` compiles with.
    """

    settings: GenerationSettings
    sizes: full_size.Sizes
    folder: Path
    backend: str

    @property
    def device(self) -> torch.device:
        """Where the networks run."""
        return torch.device(self.settings.device)

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the text-to-image model."""
        dtype: torch.dtype = getattr(torch, self.settings.text_to_image.dtype)
        return dtype

    @property
    def size(self) -> int:
        """Side of a picture in pixels."""
        return self.settings.text_to_image.size

    def drawing(self, model: str, way: Way) -> TextToImageSettings:
        """The settings with this text-to-image model, held in 8 bits if the way says so."""
        content = self.settings.text_to_image.model_dump()
        content |= {"model": model, "eight_bit": "8 bits" in way}
        return TextToImageSettings.model_validate(content)

    def random(self, *shape: int) -> Tensor:
        """Normally distributed numbers."""
        generator = torch.Generator(self.device).manual_seed(0)
        return torch.randn(shape, device=self.device, dtype=self.dtype, generator=generator)

    def tokens(self, count: int) -> Tensor:
        """Ids (1, count) that every vocabulary has."""
        return torch.arange(count, device=self.device)[None] % 256

    def action(
        self,
        function: Callable[..., Any],
        way: Way,
        modules: Iterable[nn.Module],
        *,
        rounds_as_eager: bool = False,
        **inputs: Tensor,
    ) -> Callable[..., Any]:
        """The function of these inputs, compiled and recorded if the way says so."""
        if "compiled" in way:
            function = Compiled(
                "the part",
                function,
                modules,
                backend=self.backend,
                rounds_as_eager=rounds_as_eager,
            )
        if "captured" in way:
            function = Captured("the part", function)
        return partial(function, **inputs)
