"""The preset that suits a machine: the best one whose weights are there and that fits its GPU."""

import contextlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from generation.presets import PRESETS, preset
from generation.settings import GenerationSettings, ScoringSettings
from generation.weights.store import ModelStore, default_models_dir, fetch_command
from miner.doctor.needs import GB, taken_gb
from protocol.text import printable

BEST_FIRST = ("gpu24", "gpu80", "gpu16")
"""gpu80 has the networks of gpu24, so the modest name comes first."""

SMALL = "embedded"

IMAGE_ONLY_GB = 6.0
"""GPU memory for a picture's way to an object, without FLUX; 4.3 GB were in use on an H200."""


def _plain() -> Mapping[str, GenerationSettings]:
    return {name: preset(name) for name in BEST_FIRST}


@dataclass(frozen=True)
class Machine:
    """What a choice depends on.

    Attributes:
        gpu_bytes: Free memory of the CUDA device; None without one.
        weights: Names of the presets whose weights are there.
        models_dir: The models folder, for messages; the default one when None.
        settings: Those of every preset that can be chosen, with what the user changes.
    """

    gpu_bytes: int | None
    weights: Collection[str]
    models_dir: Path | None
    settings: Mapping[str, GenerationSettings] = field(default_factory=_plain)

    def taken_gb(self, name: str) -> float:
        """GPU memory that a preset takes with its back end, as far as that was measured."""
        plain = preset(name)
        chosen = plain.model_copy(update={"lift": self.settings[name].lift})
        return taken_gb(chosen) or taken_gb(plain) or 0.0


@dataclass(frozen=True)
class Choice:
    """A preset for a machine.

    Attributes:
        preset: Its name.
        device: Where it should run instead of on its own device; None for that.
        reason: Why it is not a better one; empty if it is the best.
    """

    preset: str
    device: str | None = None
    reason: str = ""


def choose_preset(machine: Machine, *, image_only: bool = False) -> Choice:
    """Returns the best preset whose weights are there and that fits the GPU's free memory.

    From pictures, a preset for GPUs also runs on the CPU: without FLUX that takes seconds, or a
    minute on two cores.

    Args:
        machine: What is there.
        image_only: Whether text to image is not needed.
    """
    wanted = {name: IMAGE_ONLY_GB if image_only else machine.taken_gb(name) for name in BEST_FIRST}
    there = [name for name in BEST_FIRST if name in machine.weights]
    gpu_bytes = machine.gpu_bytes
    fitting = [name for name in BEST_FIRST if (gpu_bytes or 0) >= wanted[name] * GB]
    for name in fitting:
        if name in there:
            return Choice(name)
    if fitting:
        return Choice(SMALL, reason=_no_weights(fitting[0], machine))
    if gpu_bytes is None:
        reason = "there is no CUDA GPU here"
    else:
        least = min(BEST_FIRST, key=wanted.__getitem__)
        reason = (
            f"{gpu_bytes / GB:.1f} GB of the GPU's memory are free, "
            f"{least} takes {wanted[least]:.0f} GB"
        )
    if not image_only:
        return Choice(SMALL, reason=reason)
    if there:
        return Choice(there[0], "cpu", f"{reason}, so it runs on the CPU")
    return Choice(SMALL, reason=_no_weights(BEST_FIRST[0], machine))


def look(
    device: str | None,
    models_dir: Path | None,
    *,
    image_only: bool = False,
    settings_of: Callable[[str], GenerationSettings] = preset,
) -> Machine:
    """Finds out what is there; imports torch.

    Args:
        device: The device that is wanted, in torch's words; None for the first GPU.
        models_dir: The models folder; the default one when None.
        image_only: Whether text to image is not needed.
        settings_of: Returns a preset of that name with what the user changes.

    Raises:
        SetupError: The lock file of the models folder is damaged.
    """
    import torch

    store = ModelStore(models_dir or default_models_dir())
    settings = {name: settings_of(name) for name in BEST_FIRST}
    weights = [name for name in BEST_FIRST if _has_weights(store, settings[name], image_only)]
    gpu_bytes = None
    if (device is None or device.startswith("cuda")) and torch.cuda.is_available():
        # A device that is not there is named by `require_device`, whichever preset is chosen.
        with contextlib.suppress(RuntimeError, ValueError):
            gpu_bytes = torch.cuda.mem_get_info(device or "cuda")[0]
    return Machine(gpu_bytes, weights, models_dir, settings)


def _has_weights(store: ModelStore, settings: GenerationSettings, image_only: bool) -> bool:
    """Whether every file is there; loading checks what is in it. Objects need no score."""
    settings = settings.model_copy(update={"scoring": ScoringSettings()})
    return all(
        model.name in store.lock
        and all((store.folder(model) / name).is_file() for name in store.lock[model.name].files)
        for model in settings.models
        if not (image_only and model == settings.text_to_image.model)
    )


def _no_weights(name: str, machine: Machine) -> str:
    folder = machine.models_dir or default_models_dir()
    command = fetch_command(machine.settings[name], machine.models_dir)
    return printable(f"the weights of {name} are not in {folder} ({command} downloads them)", 1000)


# TripoSplat is never chosen automatically: its licence has to be accepted.
assert {SMALL, *BEST_FIRST} == {n for n, p in PRESETS.items() if p.lift.backend == "triposr"}
