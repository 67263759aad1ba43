"""What every program that generates takes: a preset, and changes to it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from generation.presets import preset
from generation.settings import GenerationFields, GenerationSettings
from miner.settings.model import Part, Settings

DEFAULT_PRESET = "embedded"


class ModelsSettings(Part):
    """Weights of the models."""

    dir: Path | None = None
    """Folder of the model weights."""


class _Preset(Settings):
    preset: str | None = None
    """Generation preset: gpu16, gpu24, gpu80, gpu24-splat, gpu80-splat, or embedded (no weights,
    no GPU)."""
    models: ModelsSettings = ModelsSettings()


class GeneratingSettings(GenerationFields, _Preset):
    """Base of the settings of a program that generates.

    The values of the preset stand below what the operator gives.
    """

    model_config = Settings.model_config

    @classmethod
    def base_values(cls, given: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """Returns the values of the preset."""
        name = given.get("preset")
        chosen = preset(name if isinstance(name, str) else DEFAULT_PRESET)
        fields = set(GenerationFields.model_fields)
        return f"preset {chosen.name}", chosen.model_dump(include=fields)

    @property
    def preset_name(self) -> str:
        """The preset in effect."""
        return self.preset or DEFAULT_PRESET

    @property
    def generation(self) -> GenerationSettings:
        """The preset with the operator's changes."""
        chosen = preset(self.preset_name)
        changed = {name: getattr(self, name) for name in GenerationFields.model_fields}
        if self.text_to_image.model != chosen.text_to_image.model:
            changed |= {"knows": "", "vocabulary": ()}
        return chosen.model_copy(update=changed)
