"""One device: loads the stages of a preset, owns the lanes, runs plans, reports step events."""

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loguru import logger
from tqdm import tqdm

from generation import process
from generation.errors import EngineDead, GenerationEnded, GenerationError, GenerationStopped
from generation.lanes import Lane, TurnExpired
from generation.lift import no_output, outputs_of, stages_of
from generation.plan import Output, Part, Plan, Rung, Step, Turn
from generation.result import Generation
from generation.settings import GenerationSettings
from generation.stage import (
    CPU,
    CUTOUT,
    GPU,
    SCORE,
    SPLATS,
    Asset,
    Cutout,
    Stage,
    StageFunction,
    StepContext,
    TriangleMesh,
    lane_workers,
    route,
)
from generation.step_run import OnEvent, OnMade, RequestRun, StepRun
from generation.warm_up import count_steps, visit_cost_keys
from generation.weights.store import models_option
from protocol.errors import SetupError, TaskError
from protocol.tasks import Task, TextTask

if TYPE_CHECKING:
    # Loads torch, which a program that only reads settings can do without.
    from generation.loading import LoadedStages

CLOSE_LIMIT_S = 5.0
"""How long closing waits for the steps that run."""

_FIRST: Turn = (-math.inf, 0)
_LOADING_STEPS = 3


class Engine:
    """Generates on one device of this process; a process may have several engines.

    While one request is drawn, another is cut out and a third encoded; on CUDA the splats of a
    fourth are made. In every lane the step with the smallest turn goes first. All methods are
    called from one event loop.

    Args:
        settings: The preset; its `device` is the engine's.
        models_dir: The models folder; the default one when None.
        clock: Monotonic clock in seconds, for latest starts and the seconds of steps.
        progress: Whether `start` and `warm_up` draw progress bars on stderr; None draws them on a
            terminal.
        functions: What the stages do, by name, if they are loaded already; `start` then loads
            nothing.
        drop_caches: With `functions`: gives back all memory that is only kept to save time.
        remembers: With `functions`: whether a prompt's encoding is still in memory.
    """

    def __init__(
        self,
        settings: GenerationSettings,
        *,
        models_dir: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        progress: bool | None = None,
        functions: Mapping[str, StageFunction] | None = None,
        drop_caches: Callable[[], None] = lambda: None,
        remembers: Callable[[str], bool] = lambda prompt: False,
    ) -> None:
        self.settings = settings
        self.ladder: tuple[Rung, ...] = settings.ladder
        self._stages: Mapping[str, tuple[Stage, ...]] = {
            rung.back_end: stages_of(settings, rung.back_end) for rung in self.ladder
        }
        self.lanes: Mapping[str, int] = {
            lane: workers
            for stages in self._stages.values()
            for lane, workers in lane_workers(stages).items()
        }
        self.outputs: frozenset[Output] = frozenset.intersection(*map(outputs_of, self._stages))
        self._lanes = {
            lane: Lane(lane, workers, prepare=partial(_prepare_thread, lane, settings.device))
            for lane, workers in self.lanes.items()
        }
        self._models_dir = models_dir
        self._clock = clock
        self._progress = progress
        self._functions = functions
        self._drop_caches = drop_caches
        self._remembers = remembers
        self._text_routes: dict[tuple[Rung, Output, Part, int, bool], tuple[Step, ...]] = {}
        self._cause_of_death: str | None = None
        self._frozen = False

    async def start(self) -> None:
        """Loads the networks, in the thread of the lane `gpu`; one engine at a time.

        Raises:
            SetupError: The device is not there, a file is missing or wrong, or memory runs out.
        """
        if self._functions is not None:
            return
        async with process.one_at_a_time():
            parts = len(self._stages) + _LOADING_STEPS + (self.settings.scoring.scorer != "none")
            with self._bar(parts) as tick:
                load = partial(_load, self.settings, self._models_dir, tick)
                try:
                    loaded = await self._lanes[GPU].run(_FIRST, load)
                except EngineDead as error:
                    raise SetupError(
                        f"preset {self.settings.name} could not be loaded: {error}",
                        fix="see the log above",
                    ) from error
        self._functions = loaded.functions
        self._drop_caches, self._remembers = loaded.drop_caches, loaded.remembers

    async def warm_up(self) -> Mapping[str, float]:
        """Generates at every rung, so that the first request meets a warm engine.

        Compiling and recording are done before a step is timed. The engines of a process warm up
        one after the other.

        Returns:
            Seconds by cost key; `route` returns no other keys.

        Raises:
            SetupError: A step failed.
        """
        compiles = self.settings.accelerate
        together = self.settings.text_to_image.batch
        meshes = "mesh" in self.outputs
        steps = count_steps(
            self.ladder, self.route, compiles=compiles, together=together, meshes=meshes
        )
        async with process.one_at_a_time():
            try:
                with self._bar(steps) as tick:
                    seconds = await visit_cost_keys(
                        self.ladder,
                        self.route,
                        self._walk,
                        self._remembers,
                        tick,
                        compiles=compiles,
                        together=together,
                        meshes=meshes,
                    )
            except (GenerationError, EngineDead, TaskError) as error:
                raise SetupError(
                    f"preset {self.settings.name} failed its warm-up: {error}",
                    fix="see the log above; `python -m scripts.benchmark pipeline --preset "
                    f"{self.settings.name}{models_option(self._models_dir)}` repeats it alone",
                ) from error
            if not self._frozen:
                self._frozen = True
                await process.freeze()
        return seconds

    def route(
        self,
        task: Task,
        rung: Rung,
        output: Output = "splats",
        part: Part = "whole",
        pictures: int = 1,
    ) -> tuple[Step, ...]:
        """Returns the steps that a task takes at a rung; see `Stage.cost_key`.

        Takes microseconds.

        Args:
            task: Text or image.
            rung: The quality level.
            output: What the task becomes.
            part: All the way, or one half of it.
            pictures: How many a plan of the part "picture" draws together: 1, or as many as
                `text_to_image.batch`, for which the warm-up has prepared.

        Raises:
            TaskError: The back end makes no such output, or the header of an image task's picture
                cannot be read.
        """
        if output not in self.outputs:
            raise TaskError("; ".join(no_output(rung.back_end, output)))
        stages = self._stages[rung.back_end]
        if not isinstance(task, TextTask):
            return route(stages, task, rung, output, part, pictures=pictures)
        # The steps of all text tasks are the same, but for whether the prompt is remembered.
        key = (rung, output, part, pictures, self._remembers(task.prompt))
        steps = self._text_routes.get(key)
        if steps is None:
            steps = route(stages, task, rung, output, part, pictures=pictures, remembered=key[-1])
            self._text_routes[key] = steps
        return steps

    def remembers(self, prompt: str) -> bool:
        """Whether the encoding of a prompt is still in memory."""
        return self._remembers(prompt)

    async def run(
        self,
        task: Task,
        plan: Plan,
        *,
        start: Cutout | None = None,
        seconds_left: float = math.inf,
        turn: Turn = _FIRST,
        on_event: OnEvent = lambda event: None,
        on_made: OnMade = lambda made: None,
    ) -> Generation:
        """Runs a plan.

        Cancelling the caller releases it at once. A step that runs is not interrupted: its thread
        ends it unobserved, but `on_event` still receives its end.

        Args:
            task: What to make.
            plan: How; its steps come from `route`.
            start: What a plan of the part "object" starts from: a cut-out of one of "picture".
            seconds_left: Of the request's time, now; `plan.latest_start` counts on it.
            turn: Its place in every lane.
            on_event: Called in the event loop. A step that runs reports "started", then "finished"
                or "failed"; a step that gave up waiting for its lane reports "skipped". Later steps
                report nothing. Exceptions of the listener are logged and ignored.
            on_made: Called in the event loop once only optional steps are left, with the object
                as it would be returned without them: it stays usable if they hang, or the engine
                dies with them.

        Raises:
            GenerationStopped: A step still waited at its latest start.
            GenerationError: This request failed; the engine goes on.
            TaskError: This request cannot be served: its picture is damaged or shows no object.
            EngineDead: No further request can be served.
        """
        deadline = self._clock() + seconds_left
        request = RequestRun(task, plan, on_event, turn, deadline, start, on_made=on_made)
        try:
            made, cutout = await self._walk(request)
        except GenerationEnded as error:
            error.timings = request.timings
            raise
        if not isinstance(made, Asset | TriangleMesh | tuple) or cutout is None:
            raise ValueError(f"the plan of {len(plan.steps)} steps makes no asset")
        return _generation(request, made, cutout)

    async def close(self, *, limit_s: float = CLOSE_LIMIT_S) -> bool:
        """Ends the threads and lets the networks go; requests that wait raise EngineDead.

        Args:
            limit_s: Seconds to wait at most for the steps that run.

        Returns:
            Whether all threads have ended; one that hangs goes on until the process ends.
        """
        ended = await asyncio.gather(*(lane.close(limit_s) for lane in self._lanes.values()))
        self._functions = None
        self._drop_caches = lambda: None
        self._remembers = lambda prompt: False
        if self._frozen:
            self._frozen = False
            process.unfreeze()
        return all(ended)

    async def _walk(self, request: RequestRun) -> tuple[Any, Cutout | None]:
        """Takes the steps of a plan; returns the last result and the cut-out, if there is one.

        An optional step that fails, or comes too late, is left out.
        """
        functions = self._functions
        if functions is None:
            raise RuntimeError("the engine was used before start, or after close")
        task, plan = request.task, request.plan
        value: Any = task if request.start is None else request.start
        cutout = value if isinstance(value, Cutout) else None
        left_out: set[str] = set()
        for position, step in enumerate(plan.steps):
            if step.optional and isinstance(value, Asset) and cutout is not None:
                request.on_made(_generation(request, value, cutout))
            context = StepContext(task, plan.rung, step.index, plan.seeds)
            work = partial(functions[step.stage], value, context)
            try:
                value = await self._take(request, position, work)
            except (GenerationError, GenerationStopped, TaskError) as error:
                if not step.optional:
                    raise
                if step.stage not in left_out:
                    left_out.add(step.stage)
                    of = f"step {step.index} of " if step.index else ""
                    logger.warning(
                        "a task goes on without {}its stage {}: {}", of, step.stage, error
                    )
            seen = value if isinstance(value, tuple) else (value,)
            cutout = next((each for each in seen if isinstance(each, Cutout)), cutout)
        return value, cutout

    async def _take(self, request: RequestRun, position: int, work: Callable[[], Any]) -> Any:
        """Waits for the lane of a step, runs the step in its thread, and reports."""
        run = StepRun(request, position, self._clock)

        def before() -> None:
            if self._cause_of_death is not None:
                raise EngineDead(self._cause_of_death)
            run.start()

        def after(error: BaseException | None) -> None:
            if isinstance(error, EngineDead) and self._cause_of_death is None:
                self._cause_of_death = str(error)
            run.end(error)

        spare = run.spare
        try:
            return await self._lanes[run.step.lane].run(
                request.turn,
                partial(run.attempt, work, self._drop_caches),
                before=before,
                after=after,
                expires_in=None if math.isinf(spare) else spare,
            )
        except TurnExpired:
            stop = run.stopped()
            run.skip(stop.reason)
            try:
                raise stop from None
            finally:
                del stop  # Or this frame would refer to itself, and keep what the step was given.
        except GenerationStopped as stop:
            run.skip(stop.reason)
            raise
        except asyncio.CancelledError:
            run.skip("the request was cancelled")
            raise
        except EngineDead as error:
            run.skip(str(error))
            raise

    @contextmanager
    def _bar(self, total: int) -> Iterator[Callable[[str], None]]:
        disable = None if self._progress is None else not self._progress
        with tqdm(total=total, disable=disable, leave=False, unit="step") as bar:

            def tick(what: str) -> None:
                bar.set_description_str(what)
                bar.update()

            yield tick


def _generation(
    request: RequestRun, made: Asset | TriangleMesh | tuple[Cutout | None, ...], cutout: Cutout
) -> Generation:
    return Generation(request.task.id, request.plan.rung.name, made, dict(request.timings), cutout)


def _load(
    settings: GenerationSettings, models_dir: Path | None, report: Callable[[str], None]
) -> "LoadedStages":
    # The import alone takes seconds, so it too belongs in the worker thread.
    from generation.loading import load

    return load(settings, models_dir, report)


def _prepare_thread(lane: str, device: str) -> None:
    """Gives the thread of a lane its place on a CUDA device, or its share of the cores."""
    if lane == CPU:
        return
    from generation.acceleration import streams

    if "cuda" not in device:
        streams.take_cores(alone=lane != GPU)
    elif lane == SPLATS:
        # They launch hundreds of small kernels and wait for many of them.
        streams.go_first(device)
    elif lane in (CUTOUT, SCORE):
        streams.go_beside(device)
    else:
        streams.use_device(device)
