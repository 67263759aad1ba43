"""What the settings come to: the preset, its 3D back end, and the quality levels."""

from importlib.util import find_spec

from generation.lift import outputs_of
from generation.presets import changes
from generation.settings import GenerationSettings
from miner.doctor.findings import Check, Verdict, failed, ok
from protocol.text import printable


def preset_check(settings: GenerationSettings) -> Check:
    """Returns a check that says what will be served, and whether all of it can render."""

    async def preset() -> Verdict:
        without = []
        if settings.lift.backend == "dreamgaussian":
            without.append(("dreamgaussian", "another back end: --lift.backend triposr"))
        if settings.refine.steps:
            without.append(("refinement", "no refinement: --refine.steps 0"))
        if without and settings.device.startswith("cuda") and find_spec("gsplat") is None:
            users, instead = (" and ".join(words) for words in zip(*without, strict=True))
            return failed(
                f"{in_words(settings)}; gsplat is not installed, and {users} cannot render "
                "without it",
                f"make install EXTRAS=gpu\nor {instead}",
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
