"""The warm-up: which generations visit every cost key of a ladder, and how long each step took."""

import asyncio
import io
import math
import statistics
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, cycle, product
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from generation.plan import Output, Part, Plan, Rung, Step, StepEvent
from generation.stage import (
    LARGE_PIXELS,
    PROMPT_NEW,
    PROMPT_REMEMBERED,
    RATE,
    SCORE_STAGE,
    Cutout,
)
from generation.step_run import RequestRun
from protocol.tasks import ImageTask, Task, TextTask

_LARGE_SIDE = 2 * math.isqrt(LARGE_PIXELS)
"""A photograph of six megapixels stands for all pictures that count as large."""

_COLOURS = ("brown", "red", "blue", "green", "yellow", "white", "purple", "orange")
_THINGS = ("chair", "car", "mug", "house", "cube", "tree", "table", "mushroom", "sphere")


class Route(Protocol):
    """Gives the steps of a task at a rung: `Engine.route`."""

    def __call__(
        self, task: Task, rung: Rung, output: Output, part: Part = "whole", pictures: int = 1
    ) -> tuple[Step, ...]:
        """Returns the steps."""


_Walked = tuple[Any, Cutout | None]
Walk = Callable[[RequestRun], Awaitable[_Walked]]


def rounds_of(
    ladder: Sequence[Rung], route: Route, *, compiles: bool
) -> tuple[tuple[Rung, ...], tuple[Rung, ...]]:
    """Returns the rungs at which to generate in each of two rounds; the second is timed.

    The second round has every rung with a cost key that no rung before it has. The first round pays
    for what is done once: for each shape, if networks are compiled or recorded.
    """
    probe = _text_task("a brown chair")
    seen: set[str] = set()
    timed = []
    for rung in ladder:
        keys = {step.cost_key for step in route(probe, rung, "splats")}
        if not keys <= seen:
            timed.append(rung)
            seen |= keys
    return tuple(timed if compiles else timed[:1]), tuple(timed)


def count_steps(
    ladder: Sequence[Rung],
    route: Route,
    *,
    compiles: bool,
    together: int = 1,
    meshes: bool = True,
) -> int:
    """Returns how many steps `visit_cost_keys` takes if prompts are remembered."""
    probe = _text_task("a brown chair")
    rounds = rounds_of(ladder, route, compiles=compiles)
    drawn = sum(len(route(probe, rung, "splats")) for rungs in rounds for rung in rungs)
    given = sum(2 * len({rung.skip_plain for rung in rungs}) for rungs in rounds)
    lifted = sum(
        len(_after_cutout(route(probe, rungs[0], "mesh")))
        for rungs in ((rounds if compiles else rounds[1:]) if meshes else ())
    )
    judged = sum(
        len(_rating(route, probe, rung)) + len(_scoring(route, probe, rung))
        for rungs in rounds
        for rung in rungs
    )
    several = len(rounds) * len(_several(route, probe, ladder[0], together))
    return drawn + given + lifted + judged + several + len(rounds)


async def visit_cost_keys(
    ladder: Sequence[Rung],
    route: Route,
    walk: Walk,
    remembers: Callable[[str], bool],
    tick: Callable[[str], None],
    *,
    compiles: bool,
    together: int = 1,
    meshes: bool = True,
) -> Mapping[str, float]:
    """Visits every cost key of text and image tasks.

    A text task with a new prompt runs at every rung of `rounds_of`. Its picture, as a small and as
    a large JPEG file, visits the cut-outs of image tasks. The small one also becomes a mesh, if the
    back end makes meshes, in the last round; in the first, too, if networks are compiled. What
    scores visits the picture and, as the picture of an image task, the cloud of each text task. At
    the best rung, pictures are drawn together, too.

    No step is optional here: one that fails now would fail with every request.

    Args:
        ladder: The quality levels.
        route: Steps of a task at a rung.
        walk: Runs the steps of a plan; returns the last result and the cut-out, if one was made.
        remembers: Whether a prompt's encoding is in memory.
        tick: Receives the name of each stage as a step of it starts.
        compiles: Whether networks are compiled or recorded for each shape.
        together: Pictures of further candidates that are drawn together.
        meshes: Whether tasks can become meshes.

    Returns:
        Seconds by cost key: the median of the last round.
    """
    prompts = _new_prompts(remembers)
    seconds: dict[str, list[float]] = {}

    def note(event: StepEvent) -> None:
        if event.kind == "started":
            tick(event.step.stage)
        elif event.kind == "finished":
            seconds[event.step.cost_key].append(event.ran_s)

    async def run(
        task: Task, rung: Rung, steps: Sequence[Step], start: Any = None, *, pictures: int = 0
    ) -> _Walked:
        required = tuple(replace(step, optional=False) for step in steps)
        plan = Plan(rung, required, seeds=tuple(range(pictures)))
        return await walk(RequestRun(task, plan, note, start=start))

    rounds = rounds_of(ladder, route, compiles=compiles)
    for number, rungs in enumerate(rounds, start=1):
        seconds = defaultdict(list)
        with_mesh = meshes and (compiles or number == len(rounds))
        for rung in rungs:
            task = _text_task(next(prompts))
            made, cutout = await run(task, rung, route(task, rung, "splats"))
            again = route(task, rung, "splats")[:1]
            if again[0].cost_key == PROMPT_REMEMBERED and PROMPT_REMEMBERED not in seconds:
                await run(task, rung, again)
            if cutout is None:
                continue
            await run(task, rung, _rating(route, task, rung), cutout)
            if rung == ladder[0] and (several := _several(route, task, rung, together)):
                await run(task, rung, several, pictures=together)
            small, large = await asyncio.to_thread(_image_tasks, cutout.picture)
            await run(small, rung, _scoring(route, small, rung), made)
            for given in (small, large):
                steps = route(given, rung, "mesh" if meshes else "splats")
                if steps[0].cost_key in seconds:
                    continue
                if not with_mesh or steps[-1].cost_key in seconds:
                    steps = steps[:1]
                await run(given, rung, steps)
    # Memory may be too short to remember anything. A prompt that is remembered costs no more.
    seconds.setdefault(PROMPT_REMEMBERED, seconds[PROMPT_NEW])
    return {key: statistics.median(values) for key, values in seconds.items()}


def _after_cutout(steps: Sequence[Step]) -> Sequence[Step]:
    """The steps that follow the cut-out."""
    names = [step.stage for step in steps]
    return steps[names.index("cutout") + 1 :]


def _rating(route: Route, task: Task, rung: Rung) -> tuple[Step, ...]:
    """The steps from a cut-out to its rating; none without a scorer."""
    return tuple(s for s in route(task, rung, "splats", "picture") if s.stage == RATE.name)


def _several(route: Route, task: Task, rung: Rung, together: int) -> tuple[Step, ...]:
    """The steps to the cut-outs of several pictures; none without a scorer, or for one picture."""
    if together == 1 or not _rating(route, task, rung):
        return ()
    return route(task, rung, "splats", "picture", together)


def _scoring(route: Route, task: Task, rung: Rung) -> tuple[Step, ...]:
    """The steps from a file to its score; none without a scorer."""
    return tuple(s for s in route(task, rung, "splats") if s.stage == SCORE_STAGE.name)


def _text_task(prompt: str) -> TextTask:
    return TextTask(id="warm-up", prompt=prompt, seed=0)


def _new_prompts(remembers: Callable[[str], bool]) -> Iterator[str]:
    """Prompts whose encodings are not in memory, as long as there are any."""
    every = [f"a {colour} {thing}" for thing, colour in product(_THINGS, _COLOURS)]
    new = (prompt for prompt in every if not remembers(prompt))
    return chain(new, cycle(every))


def _image_tasks(picture: NDArray[np.uint8]) -> list[ImageTask]:
    """The same picture as two JPEG files, one that counts as small and one as large.

    As a PNG file, a large picture with much noise would be beyond the limit of image tasks.
    """
    small = Image.fromarray(picture)
    large = small.resize((_LARGE_SIDE, _LARGE_SIDE))
    return [ImageTask(id="warm-up", image=_jpeg(image), seed=0) for image in (small, large)]


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=75)
    return file.getvalue()
