"""What scores objects here, and whether it has what it needs."""

import os
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from shutil import which

from generation.settings import GenerationSettings, ScoringSettings
from generation.weights.sources import ModelSource
from generation.weights.store import fetch_command
from miner.doctor.findings import Verdict, failed, ok, warning

CUDA_FOLDER = Path("/usr/local/cuda")
"""Where NVIDIA's packages put the toolkit, without adding it to the PATH."""


def require_packages(settings: GenerationSettings) -> None:
    """Checks that the packages of the scorer can be imported; imports torch for the validator's.

    Raises:
        SetupError: Names what is missing.
    """
    if settings.scoring.scorer == "validator":
        from generation.scoring.validator import require_extra

        require_extra(settings.device.partition(":")[0])


def scoring_models(settings: GenerationSettings) -> list[ModelSource]:
    """Returns the weights that only the scorer needs."""
    others = settings.model_copy(update={"scoring": ScoringSettings()}).models
    return [model for model in settings.models if model not in others]


def judge_scorer(settings: GenerationSettings, locked: Collection[str], models: Path) -> Verdict:
    """Tells what scores objects, and whether its weights have been downloaded.

    Args:
        settings: The preset.
        locked: Names of the models that the lock file has.
        models: The models folder.
    """
    scoring = settings.scoring
    match scoring.scorer:
        case "none":
            return ok("none: one object for each task, and no result is gated")
        case "embedded":
            return ok("embedded: shipped, it needs nothing")
    missing = [model.name for model in scoring_models(settings) if model.name not in locked]
    if missing:
        return failed(
            f"validator: {', '.join(missing)} not downloaded to {models}",
            f"{fetch_command(settings, models)}\nor --scoring.scorer none",
        )
    if settings.device != "cpu":
        if find_spec("gsplat") is None:
            return failed(
                "validator: gsplat, which renders its views, is not installed",
                "make install EXTRAS=gpu,score\nor --scoring.scorer none",
            )
        if not _is_compiled() and not _has_nvcc():
            return warning(
                f"validator: nvcc is neither on the PATH nor in {CUDA_FOLDER}; gsplat needs it "
                "once, to compile itself",
                "install NVIDIA's CUDA toolkit of torch's version\nor --scoring.scorer none",
            )
    aligned = "its own network" if scoring.image_alignment == "llm2clip" else "a stand-in"
    return ok(f"validator: packages and weights are there; image tasks are compared by {aligned}")


def _has_nvcc() -> bool:
    """Whether PyTorch, which compiles gsplat, finds a CUDA toolkit."""
    named = any(name in os.environ for name in ("CUDA_HOME", "CUDA_PATH"))
    return named or which("nvcc") is not None or (CUDA_FOLDER / "bin" / "nvcc").is_file()


def _is_compiled() -> bool:
    """Whether gsplat was built where nvcc is, as for the image, and needs none here."""
    try:
        files = distribution("gsplat").files or ()
    except PackageNotFoundError:
        return False
    return any(file.suffix == ".so" and file.stem.startswith("csrc") for file in files)
