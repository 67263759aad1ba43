"""Two plans of one task share what the first one made."""

from typing import Any

from generation.presets import preset
from generation.stage import StepContext
from protocol.tasks import TextTask
from scripts.making.maker import once_for_each_task

RUNG = preset("embedded").ladder[0]


def test_a_step_runs_once_for_each_task() -> None:
    calls: list[tuple[str, int]] = []

    def denoise(value: Any, context: StepContext) -> Any:
        calls.append((context.task.id, context.index))
        return [value, context.task.id, context.index]

    once = once_for_each_task({"denoise": denoise})["denoise"]
    red, blue = (TextTask(id=name, prompt=name) for name in ("red", "blue"))
    first = once(0, StepContext(red, RUNG, 0))
    assert once(0, StepContext(red, RUNG, 0)) is first
    assert once(first, StepContext(red, RUNG, 1)) == [first, "red", 1]
    assert once(0, StepContext(blue, RUNG, 0)) == [0, "blue", 0]
    assert once(0, StepContext(red, RUNG, 0)) == first
    assert calls == [("red", 0), ("red", 1), ("blue", 0), ("red", 0)]
