"""What the settings come to: the preset, its 3D back end, and the quality levels."""

from importlib.util import find_spec

from generation.lift import outputs_of
from generation.presets import changes
from generation.settings import GenerationSettings
from miner.doctor.findings import Check, Verdict, failed, ok
from protocol.text import printable


def preset_check(settings: GenerationSettings) -> Check:
    """Returns a check that says what will be served, and whether its 3D back end can render."""

    async def preset() -> Verdict:
        optimises = settings.lift.backend == "dreamgaussian"
        if optimises and settings.device.startswith("cuda") and find_spec("gsplat") is None:
            return failed(
                f"{in_words(settings)}; gsplat, which it renders with, is not installed",
                "make install EXTRAS=gpu\nor another back end: --lift.backend triposr",
            )
        return ok(in_words(settings))

    return Check("preset", preset)


def in_words(settings: GenerationSettings) -> str:
    """Says in a sentence what a miner with these settings serves."""
    name = settings.lift.backend
    makes = "splats and meshes" if "mesh" in outputs_of(name) else "splats, no meshes"
    levels = ", ".join(rung.in_words for rung in settings.ladder)
    changed = ", ".join(f"{name} {value}" for name, value in changes(settings).items())
    preset = settings.name + (f" with {printable(changed, 300)}" if changed else "")
    return f"{preset} on {settings.device}; 3D back end {name} ({makes}); levels: {levels}"
