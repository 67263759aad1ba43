"""Reads tasks from HTML forms."""

import asyncio

from starlette.datastructures import FormData
from starlette.requests import Request

from protocol.errors import TaskError
from protocol.images import read_header
from protocol.tasks import MAX_SEED, ImageTask, Task, TaskLimits, log_safe, parse_task

MAX_FIELDS = 16
FIELD_BYTES = 16 * 1024
"""Longest field that is not a file; holds the longest prompt, percent-encoded."""

ENVELOPE_BYTES = 64 * 1024
"""Bytes of a form beside the image, at most."""


async def read_task(request: Request, task_id: str, limits: TaskLimits) -> Task:
    """Reads a form with the field `prompt` or the file `prompt_image_file`, and perhaps `seed`.

    Other fields are ignored.

    Args:
        request: The request; its body has not been read yet.
        task_id: The id that the task gets.
        limits: Limits on tasks.

    Raises:
        TaskError: A field is missing, of the wrong kind or beyond its limit.
        starlette.exceptions.HTTPException: Status 400, the form itself is damaged or too large.
        starlette.requests.ClientDisconnect: The client left before the body was complete.
    """
    async with request.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=FIELD_BYTES) as form:
        return await _task(form, task_id, limits)


async def _task(form: FormData, task_id: str, limits: TaskLimits) -> Task:
    prompt, image = form.get("prompt"), form.get("prompt_image_file")
    if (prompt is None) == (image is None):
        raise TaskError(
            f"the form has {'neither' if prompt is None else 'both'} the field prompt (text) "
            f"{'nor' if prompt is None else 'and'} the file prompt_image_file; send one of them"
        )
    seed = _seed(form.get("seed"))
    if image is None:
        if not isinstance(prompt, str):
            raise TaskError("prompt is a file; send text, or an image as prompt_image_file")
        return parse_task(kind="text", task_id=task_id, prompt=prompt, seed=seed, limits=limits)
    if isinstance(image, str):
        raise TaskError("prompt_image_file is text; send a file: -F prompt_image_file=@chair.png")
    data = await image.read()
    # Off the event loop: a hostile file can make its header megabytes long.
    await asyncio.to_thread(read_header, data, limits.image)
    return ImageTask(id=task_id, image=data, seed=seed)


def _seed(text: object) -> int | None:
    if text is None or text == "":
        return None
    if isinstance(text, str) and text.isascii() and text.isdecimal() and len(text) <= 10:
        seed = int(text)
        if seed <= MAX_SEED:
            return seed
    shown = log_safe(text) if isinstance(text, str) else "a file"
    raise TaskError(f"seed must be a whole number from 0 to {MAX_SEED}, got {shown}")
