"""The networks of a preset by themselves, for benchmarks that draw them or look into them."""

from dataclasses import dataclass
from pathlib import Path

from generation.lift.triposr import TripoSR
from generation.lift.triposr.loading import functions_of, load_network
from generation.loading import (
    LoadedStages,
    PictureNetworks,
    assemble,
    load_pictures,
    load_scorer,
    require_device,
    start_compiling,
)
from generation.scoring.score import Scorer
from generation.settings import GenerationSettings


@dataclass(frozen=True, eq=False)
class Networks:
    """What a preset keeps resident.

    Attributes:
        pictures: From a task to a cut-out.
        triposr: From there to a scene code.
        scorer: What scores objects, if anything does.
    """

    pictures: PictureNetworks
    triposr: TripoSR
    scorer: Scorer | None = None


def load_networks(settings: GenerationSettings, models_dir: Path | None) -> Networks:
    """Loads every network of a preset.

    Args:
        settings: The preset.
        models_dir: The models folder; the default one when None.

    Raises:
        SetupError: The device is not there, or a file is missing or wrong.
    """
    device = require_device(settings)
    start_compiling(settings, device)
    pictures = load_pictures(settings, models_dir, device)
    triposr = load_network(settings, models_dir, device)
    return Networks(pictures, triposr, load_scorer(settings, models_dir, device))


def fast_stages(settings: GenerationSettings, networks: Networks) -> LoadedStages:
    """Makes a preset's own stages of its networks; accelerates them in place if it says so."""
    back_ends = {"triposr": functions_of(settings, networks.triposr)}
    return assemble(settings, networks.pictures, back_ends, networks.scorer)
