"""The networks of a preset by themselves, for benchmarks that draw them or look into them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from generation.lift.triposplat import TripoSplat
from generation.lift.triposplat import loading as triposplat_loading
from generation.lift.triposplat.features import PictureEncoders
from generation.lift.triposr import TripoSR
from generation.lift.triposr import loading as triposr_loading
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
from generation.stage import StageFunction

Lift = TripoSR | tuple[TripoSplat, PictureEncoders]
"""The networks of a back end."""


@dataclass(frozen=True, eq=False)
class Networks:
    """What a preset keeps resident.

    Attributes:
        pictures: From a task to a cut-out.
        lift: From there to 3D.
        scorer: What scores objects, if anything does.
    """

    pictures: PictureNetworks
    lift: Lift
    scorer: Scorer | None = None

    @property
    def triposr(self) -> TripoSR:
        """From a cut-out to a scene code.

        The preset's back end must be triposr.
        """
        assert isinstance(self.lift, TripoSR)
        return self.lift


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
    lift: Lift
    if settings.lift.backend == "triposr":
        lift = triposr_loading.load_network(settings, models_dir, device)
    else:
        lift = triposplat_loading.load_networks(settings, models_dir, device)
    return Networks(pictures, lift, load_scorer(settings, models_dir, device))


def fast_stages(settings: GenerationSettings, networks: Networks) -> LoadedStages:
    """Makes a preset's own stages of its networks; accelerates them in place if it says so."""
    if isinstance(networks.lift, TripoSR):
        functions = triposr_loading.functions_of(settings, networks.lift)
    else:
        functions = triposplat_loading.functions_of(settings, *networks.lift)
    back_ends: dict[str, Mapping[str, StageFunction]] = {settings.lift.backend: functions}
    return assemble(settings, networks.pictures, back_ends, networks.scorer)
