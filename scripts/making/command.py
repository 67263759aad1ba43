"""The command line that makes objects: its settings, its files, and what it says."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, TypeVar

from generation.presets import preset
from generation.settings import GenerationSettings, Seed
from generation.weights.sources import Names
from miner.interpreter import program_name
from miner.settings.generation import GeneratingSettings
from miner.settings.model import ANY_NAME
from miner.settings.reader import read_settings
from miner.surroundings import settle, settle_terminal, tell
from protocol.errors import SetupError, TaskError
from protocol.tasks import Task
from scripts.making.choice import choose_preset, look
from scripts.making.files import VIDEO, VideoSettings, name_files, require_outputs
from scripts.making.maker import NOT_MADE, WRONG, Subject, failed, make_all

INTERRUPTED = 130

_PRINT = "--print-config"


class MakingSettings(GeneratingSettings):
    """Base of the settings of a program that makes objects."""

    preset: str | None = None
    """Generation preset: gpu80, gpu24, gpu16, gpu80-splat, gpu24-splat, or embedded (no weights, no
    GPU); if not given, the best one with TripoSR whose weights are here and that fits the GPU's
    free memory."""
    out: Annotated[Path, ANY_NAME] = Path("{name}.ply")
    """File of an object: .spz or .ply (Gaussian splats), .glb or .obj (a mesh with vertex colours,
    if the 3D back end makes meshes), .png (four views) or .mp4 (a turntable). {name} stands for the
    prompt in letters and hyphens, or for the picture's name; several objects need it."""
    also: Names = ()
    """Further formats, written beside it: glb,mp4. If one of them cannot be made, nothing is."""
    preview: bool = True
    """Whether to write four views of every object beside it, as NAME.preview.png."""
    seed: Seed | None = None
    """Seed of every object; the preset's if not given."""
    video: VideoSettings = VideoSettings()

    @classmethod
    def base_values(cls, given: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """Returns the values of the preset, but for what suits a few objects better.

        Compiling takes longer than it saves. Without a preset, the device is the machine's best.
        """
        where, values = super().base_values(given)
        unless_given = {"accelerate": False} | ({} if given.get("preset") else {"device": ""})
        return where, {**values, **unless_given}


C = TypeVar("C", bound=MakingSettings)


@dataclass(frozen=True)
class Source:
    """What an object is made from.

    Attributes:
        shown: As a terminal may show it.
        name: What stands for it in the names of files.
        task: What the engine is asked.
        candidates: How many objects are made of it, to keep the best.
    """

    shown: str
    name: str
    task: Task
    candidates: int = 1


def run(
    model: type[C],
    sources: Callable[[C], Sequence[Source]],
    module: str,
    arguments: Sequence[str] | None,
    *,
    image_only: bool = False,
) -> int:
    """Runs a program that makes objects, and returns its exit status.

    Args:
        model: Its settings.
        sources: Returns what to make; raises SetupError or TaskError where that cannot be read.
        module: The module that `python -m` takes.
        arguments: The command line; that of the process when None.
        image_only: Whether all sources are pictures.

    Returns:
        0 made, 1 not made, 2 a wrong argument, or a file that cannot be read or written,
        130 interrupted.
    """
    try:
        return _run(model, sources, module, arguments, image_only=image_only)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED


def _run(
    model: type[C],
    sources: Callable[[C], Sequence[Source]],
    module: str,
    arguments: Sequence[str] | None,
    *,
    image_only: bool,
) -> int:
    settle_terminal()
    prog, given = program_name(module), list(sys.argv[1:] if arguments is None else arguments)
    without = [word for word in given if word != _PRINT]
    try:
        config = read_settings(model, prog=prog, argv=without)
        if given != without:
            _with_preset(config, prog, given, image_only=image_only)  # Prints, and exits.
        things = sources(config)
        files = name_files(config.out, config.also, [thing.name for thing in things])
        require_outputs(chain.from_iterable(files), config.lift.backend)
        if any(file.suffix.lower() == VIDEO for some in files for file in some):
            _require_video()
    except SetupError as error:
        tell(error)
        return WRONG
    except TaskError as error:
        return failed(str(error), WRONG)
    try:
        config = _with_preset(config, prog, given, image_only=image_only)
        return make_all(
            config.generation,
            [
                Subject(thing.shown, thing.task, some, thing.candidates)
                for thing, some in zip(things, files, strict=True)
            ],
            models_dir=config.models.dir,
            video=config.video,
            preview=config.preview,
        )
    except SetupError as error:
        tell(error)
        return NOT_MADE


def _with_preset(config: C, prog: str, given: Sequence[str], *, image_only: bool) -> C:
    """Returns the settings with the preset that suits the machine, if the user names none."""
    chosen: list[str] = []
    settle()
    if config.preset is None:

        def settings_of(name: str) -> GenerationSettings:
            return read_settings(
                type(config), prog=prog, argv=[f"--preset={name}", *given]
            ).generation

        machine = look(
            config.device or None,
            config.models.dir,
            image_only=image_only,
            settings_of=settings_of,
        )
        choice = choose_preset(machine, image_only=image_only)
        knows = preset(choice.preset).knows
        notes = [choice.reason, f"it knows {knows}" if knows else ""]
        said = "; ".join(note for note in notes if note)
        print(f"preset {choice.preset}{said and f': {said}'}", file=sys.stderr)
        chosen += [f"--preset={choice.preset}"]
        chosen += [] if choice.device is None else [f"--device={choice.device}"]
    # What the user gives comes later, and wins.
    return read_settings(type(config), prog=prog, argv=[*chosen, *given])


def _require_video() -> None:
    from generation.rendering.turntable import require_video

    require_video()
