"""The engine in this process."""

from pathlib import Path

from generation.engine import Engine
from generation.presets import variant
from generation.settings import GenerationSettings


class LocalEngine(Engine):
    """An engine of this process, with a name for logs and estimates.

    Args:
        settings: The preset; its `device` is the engine's.
        models_dir: The models folder; the default one when None.
        name: Unique among the engines of this miner.
    """

    def __init__(
        self, settings: GenerationSettings, *, models_dir: Path | None = None, name: str = "local"
    ) -> None:
        super().__init__(settings, models_dir=models_dir)
        self.name = name

    @property
    def machine(self) -> str:
        """What the estimates of an earlier run are valid for: preset, its changes, and device."""
        from generation.loading import device_name

        return f"{variant(self.settings)} on {device_name(self.settings.device)}"
