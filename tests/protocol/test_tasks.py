import base64
import re
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from protocol.errors import TaskError
from protocol.images import ImageLimits
from protocol.tasks import ImageTask, TaskLimits, TextTask, is_picture, log_safe, parse_task


def png(width: int = 8, height: int = 8) -> bytes:
    file = BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(file, "PNG")
    return file.getvalue()


def text(prompt: str, **other: object) -> TextTask:
    task = parse_task(kind="text", task_id="t-1", prompt=prompt, **other)  # type: ignore[arg-type]
    assert isinstance(task, TextTask)
    return task


def test_a_text_task_keeps_its_fields_and_folds_white_space() -> None:
    task = text("  a blue\r\n\tcube ", seed=7)
    assert (task.kind, task.id, task.prompt, task.seed) == ("text", "t-1", "a blue cube", 7)


def test_an_image_task_holds_the_decoded_file_and_does_not_show_it() -> None:
    data = png()
    task = parse_task(kind="image", task_id="i-1", prompt=base64.b64encode(data).decode())
    assert isinstance(task, ImageTask)
    assert task.image == data
    assert "PNG" not in repr(task)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "prompt is empty"),
        (" \n\t ", "prompt is empty"),
        ("x" * 1025, "1025 characters, the limit is 1024"),
        ("x" * 10_000_000, "10000000 characters, the limit is 1024"),
        ("a\x00cube", "control character U\\+0000 at position 1"),
        ("a\x1b[31mcube", "control character U\\+001B"),
        ("a\x7fcube", "control character U\\+007F"),
        (7, "prompt must be a string, got int"),
        (None, "prompt must be a string, got NoneType"),
        (["a cube"], "prompt must be a string, got list"),
    ],
)
def test_unusable_prompts_are_refused_with_the_reason(prompt: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        text(prompt)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "image prompt is empty"),
        ("not base64!", "not base64"),
        ("aGk", "not base64"),
        ("\u00e9" * 4, "not base64"),
        (base64.b64encode(b"GIF89a-no-image").decode(), "neither PNG, JPEG nor WebP"),
        (base64.b64encode(png()[:20]).decode(), "ends inside its header"),
    ],
)
def test_unusable_images_are_refused_with_the_reason(prompt: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        parse_task(kind="image", task_id="i", prompt=prompt)


def test_the_length_of_base64_is_held_against_its_limit_before_it_is_decoded() -> None:
    limits = TaskLimits(image=ImageLimits(bytes=30))
    assert limits.base64_characters == 40
    with pytest.raises(TaskError, match="41 base64 characters, the limit is 40"):
        parse_task(kind="image", task_id="i", prompt="!" * 41, limits=limits)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "video"}, "must be 'text' or 'image', got 'video'"),
        ({"kind": "a\nb"}, "got 'a\\?b'"),
        ({"task_id": "x" * 129}, "id: .*at most 128"),
        ({"seed": -2}, "seed: .*greater than or equal to 0"),
        ({"seed": 2**32}, "seed: .*less than or equal to 4294967295"),
    ],
)
def test_other_fields_are_checked_too(fields: dict[str, object], message: str) -> None:
    whole = {"kind": "text", "task_id": "t", "prompt": "a cube", **fields}
    with pytest.raises(TaskError, match=message):
        parse_task(**whole)  # type: ignore[arg-type]


def test_the_seed_minus_one_leaves_the_choice_to_the_generator() -> None:
    assert text("a cube", seed=-1).seed is None
    image = base64.b64encode(png()).decode()
    assert parse_task(kind="image", task_id="i", prompt=image, seed=-1).seed is None


PNG = base64.b64encode(png() + bytes(range(256)) + bytes(-len(png()) % 3)).decode()
SPELLINGS = {
    "as it is": PNG,
    "without padding": PNG.rstrip("="),
    "in lines": base64.encodebytes(base64.b64decode(PNG)).decode(),
    "in lines of Windows": base64.encodebytes(base64.b64decode(PNG)).decode().replace("\n", "\r\n"),
    "URL-safe": PNG.replace("+", "-").replace("/", "_"),
    "a data URI": f"data:image/png;base64,{PNG}",
    "a data URI in capitals": f"DATA:image/PNG;BASE64,{PNG}",
    "a + that a form has made a space": PNG.replace("+", " "),
    "with white space around it": f" \n{PNG}\r\n",
}


@pytest.mark.parametrize("prompt", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_a_picture_is_known_however_its_base64_is_spelt(prompt: str) -> None:
    assert "+" in PNG
    assert "/" in PNG
    assert PNG.endswith("=")
    assert is_picture(prompt)
    task = parse_task(kind="image", task_id="i", prompt=prompt)
    assert isinstance(task, ImageTask)
    assert task.image == base64.b64decode(PNG)


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF", "AVIF"])
def test_a_picture_of_every_format_is_known(format_: str) -> None:
    file = BytesIO()
    Image.new("RGB", (8, 8)).save(file, format_)
    prompt = base64.b64encode(file.getvalue()).decode()
    assert is_picture(prompt)
    if format_ in ("GIF", "AVIF"):  # Refused as a picture, not as a long prompt.
        with pytest.raises(TaskError, match="neither PNG, JPEG nor WebP"):
            parse_task(kind="image", task_id="i", prompt=prompt)


def test_a_picture_at_the_limit_is_taken_in_every_spelling() -> None:
    data = png() + b"\xff" * 1000
    limits = TaskLimits(image=ImageLimits(bytes=len(data)))
    for prompt in (
        base64.b64encode(data).decode(),
        base64.encodebytes(data).decode(),
        f"data:image/png;base64,{base64.b64encode(data).decode()}",
    ):
        parse_task(kind="image", task_id="i", prompt=prompt, limits=limits)
    longer = base64.encodebytes(data + b"\xff\xff\xff").decode()
    with pytest.raises(TaskError, match="the limit is"):
        parse_task(kind="image", task_id="i", prompt=longer, limits=limits)


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a red car",
        "x" * 5000,
        "RIFF",
        "/9j/ is how a JPEG begins",
        "data: a diagram, base64",
        "iVBOR",
        "gr\u00fcner Baum",
        "\ud800",
        "\x00",
    ],
)
def test_words_are_no_picture(prompt: str) -> None:
    assert not is_picture(prompt)


@given(st.text(max_size=300))
def test_any_text_is_judged(prompt: str) -> None:
    is_picture(prompt)
    with pytest.raises(TaskError):
        parse_task(kind="image", task_id="i", prompt=prompt)


def test_an_empty_id_is_replaced_by_a_fresh_one() -> None:
    first, second = (parse_task(kind="text", task_id="", prompt="a cube") for _ in range(2))
    assert re.fullmatch(r"[0-9a-f-]{36}", first.id)
    assert first.id != second.id


def test_a_refusal_never_repeats_the_prompt() -> None:
    secret = base64.b64encode(b"RIFF....WEBPsecret-chunk").decode()
    with pytest.raises(TaskError) as caught:
        parse_task(kind="image", task_id="i", prompt=secret)
    assert secret not in str(caught.value)


def test_tasks_are_frozen_and_refuse_unknown_fields() -> None:
    task = text("a cube")
    with pytest.raises(ValidationError):
        task.prompt = "a sphere"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="colour"):
        TextTask(id="t", prompt="a cube", colour="blue")  # type: ignore[call-arg]


@given(st.text(max_size=200))
def test_what_a_log_gets_is_short_and_harmless(identity: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9._:?-]{0,64}", log_safe(identity))


def test_an_id_that_is_an_attack_is_made_harmless_in_its_log_form() -> None:
    task = parse_task(kind="text", task_id="\x1b[2J\n{evil}" + "x" * 80, prompt="a cube")
    assert task.log_id == "??2J??evil?" + "x" * 53


@given(st.text(max_size=1100))
def test_any_prompt_is_either_refused_or_free_of_control_characters(prompt: str) -> None:
    try:
        task = text(prompt)
    except TaskError:
        return
    assert 1 <= len(task.prompt) <= 1024
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", task.prompt)
    assert text(task.prompt).prompt == task.prompt
