"""A visitor of the page makes objects, sees them turn, and takes them home."""

import io
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image
from playwright.sync_api import Page, expect

from generation.engine import Engine
from generation.stage import StageFunction
from protocol import ply, spz
from scripts.demo import shaded_ball
from tests.miner.web.conftest import OpenPage
from tests.support.browsing import ServedMiner, WatchedPage

GAUSSIANS = 8_000
"""A little more than a validator wants: WebGL in software needs its time for each."""
PROMPT = "a shiny red car"
STAGES = ["prompt", "denoise", "decode", "cutout", "lift", "splats", "encode", "score"]


class Gates:
    """Holds each stage of a job until the page has shown that it runs."""

    def __init__(self) -> None:
        self._open = {stage: threading.Event() for stage in STAGES}
        self.open()

    def open(self, *stages: str) -> None:
        """Lets stages pass, from now on; all without names."""
        for stage in stages or STAGES:
            self._open[stage].set()

    def close(self) -> None:
        for gate in self._open.values():
            gate.clear()

    def guarded(self, stage: str, function: StageFunction) -> StageFunction:
        def run(*arguments: Any) -> Any:
            assert self._open[stage].wait(30.0)
            return function(*arguments)

        return run if stage in STAGES else function


class SharedEngine(Engine):
    """The networks of the warm engine, in lanes of its own."""

    name = "local"
    machine = "this one"


@pytest.fixture(scope="module")
def gates() -> Gates:
    return Gates()


@pytest.fixture(scope="module")
def miner(
    warm_engine: Engine, gates: Gates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServedMiner]:
    splats = warm_engine.settings.splats.model_copy(update={"max_gaussians": GAUSSIANS})
    settings = warm_engine.settings.model_copy(update={"splats": splats, "rungs": ()})
    assert warm_engine._functions is not None
    functions = {name: gates.guarded(name, run) for name, run in warm_engine._functions.items()}
    engine = SharedEngine(settings, functions=functions, progress=False)
    miner = ServedMiner(tmp_path_factory.mktemp("miner"), engine)
    yield miner
    miner.close()


@pytest.fixture(scope="module")
def watched(miner: ServedMiner, open_page: OpenPage) -> WatchedPage:
    return open_page(miner.url, "422", viewport={"width": 900, "height": 900})


@pytest.fixture
def page(watched: WatchedPage) -> Page:
    return watched.page


def wait_for_splat(page: Page) -> None:
    expect(page.locator("#tools")).to_be_visible()


def view(page: Page) -> np.ndarray[Any, Any]:
    return pixels(page.locator("#canvas").screenshot())


def pixels(png: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def red_share(picture: np.ndarray[Any, Any]) -> float:
    red, green, blue = np.moveaxis(picture, -1, 0)
    return float(((red > 120) & (green < 70) & (blue < 70)).mean())


def still_view(page: Page) -> np.ndarray[Any, Any]:
    """The view once it no longer changes."""
    before = view(page)
    for _ in range(40):
        page.wait_for_timeout(150)
        now = view(page)
        if np.array_equal(before, now):
            return now
        before = now
    raise AssertionError("the view does not come to rest")


def test_a_prompt_becomes_a_splat_and_each_stage_is_shown_as_it_runs(
    page: Page, gates: Gates
) -> None:
    gates.close()
    page.get_by_label("Describe one object").fill(PROMPT)
    page.keyboard.press("Enter")
    rows = page.locator("#stages li")
    for number, stage in enumerate(STAGES):
        expect(rows.nth(number)).to_have_attribute("data-state", "running")
        assert rows.nth(number).get_attribute("data-stage") == stage
        expect(page.locator("#overlay-text")).to_have_text(
            rows.nth(number).locator("span").first.inner_text()
        )
        expect(page.locator("#sentence")).to_contain_text("expected")
        gates.open(stage)
    expect(page.locator("#sentence")).to_contain_text("Done in")
    assert [row.get_attribute("data-state") for row in rows.all()] == ["done"] * len(STAGES)
    assert re.fullmatch(r"\d+\.\d+ s", page.locator("#stages .seconds").last.inner_text())
    wait_for_splat(page)


def test_the_page_tells_what_was_made(page: Page) -> None:
    expect(page.locator("#title")).to_have_text(PROMPT)
    expect(page.locator("#sentence")).to_contain_text("Done in")
    facts = page.locator("#facts").inner_text()
    assert f"{GAUSSIANS:,}" in facts
    assert re.search(r"words understood\s+.*red.*car", facts)
    assert re.search(r"words ignored\s+shiny", facts)
    assert re.search(r"score\s+0\.\d\d by embedded, \w+ 0\.\d\d", facts)
    assert re.search(r"gate\s+(passed|a validator would get an empty result): its score", facts)
    expect(page.locator("#choice")).to_be_hidden()  # This miner makes one object each.
    for name in ("picture", "cutout"):
        shown = page.locator(f"#{name}-shown img")
        expect(shown).to_be_visible()
        assert shown.evaluate("image => image.naturalWidth") >= 64
    expect(page.locator("#state")).to_have_text("Ready")
    expect(page.locator("#knows")).to_contain_text("one object in one colour")


def changed(before: np.ndarray[Any, Any], after: np.ndarray[Any, Any]) -> float:
    """The share of a view that looks different."""
    return float((np.abs(before - after).max(axis=-1) > 30).mean())


def test_the_splat_turns_in_its_colour_until_it_is_stopped(
    miner: ServedMiner, open_page: OpenPage
) -> None:
    # Frames come when they are asked for, and in half the pixels: WebGL in software draws them on
    # every core.
    viewport = {"width": 400, "height": 600}
    watched = open_page(miner.url, turning=True, viewport=viewport, device_scale_factor=0.5)
    page = watched.page
    page.clock.install()
    page.get_by_label("Describe one object").fill(PROMPT)
    page.keyboard.press("Enter")
    wait_for_splat(page)
    page.clock.pause_at(time.time() + 3600.0)
    expect(page.locator("#turn")).to_have_attribute("aria-pressed", "true")

    def views(milliseconds: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        before = view(page)
        page.clock.run_for(milliseconds)
        return before, view(page)

    turning = views(200)
    assert changed(*turning) > 0.005
    assert all(red_share(each) > 0.02 for each in turning)
    page.get_by_role("button", name="Turn").click()
    # It glides to its rest.
    assert any(changed(*views(250)) < 0.0005 for _ in range(10)), "it still turns"
    watched.close()
    assert watched.errors == []


def test_the_view_is_the_front_from_above_as_the_miner_renders_it(page: Page) -> None:
    """The first view is near view 2 of the judge's sixteen: the car's front, wheels below."""
    # This browser asks for less motion.
    expect(page.locator("#turn")).to_have_attribute("aria-pressed", "false")
    picture = still_view(page)
    red, green, blue = np.moveaxis(picture, -1, 0)
    rows, _ = np.nonzero((red > 120) & (green < 70) & (blue < 70))
    dark_rows, _ = np.nonzero((red < 110) & (np.abs(red - blue) < 50) & (np.abs(red - green) < 50))
    assert np.median(dark_rows) > np.median(rows) + 10


def test_keys_turn_the_object_and_a_button_takes_it_back(page: Page) -> None:
    first = still_view(page)
    page.locator("#canvas canvas").press("ArrowRight")
    assert changed(still_view(page), first) > 0.005
    page.get_by_role("button", name="Reset view").click()
    assert changed(still_view(page), first) < 0.002  # The ring of what has the focus.


@pytest.mark.parametrize("ending", ["ply", "spz", "glb", "obj", "png"])
def test_each_format_is_downloaded_and_can_be_read(page: Page, ending: str) -> None:
    with page.expect_download() as waiting:
        page.get_by_role("button", name=f".{ending}", exact=True).click()
    assert waiting.value.suggested_filename == f"a-shiny-red-car.{ending}"
    data = Path(waiting.value.path()).read_bytes()
    if ending in ("ply", "spz"):
        cloud = ply.decode(data) if ending == "ply" else spz.decode(data)
        assert len(cloud) == GAUSSIANS
    elif ending == "png":
        assert Image.open(io.BytesIO(data)).size == (517, 517)
    else:
        mesh = trimesh.load(io.BytesIO(data), file_type=ending, force="mesh")
        assert len(mesh.faces) > 1000


def test_a_dropped_picture_becomes_an_object(page: Page) -> None:
    file = io.BytesIO()
    shaded_ball(128).save(file, "PNG")
    page.evaluate(
        """(bytes) => {
          const files = new DataTransfer();
          files.items.add(new File([new Uint8Array(bytes)], "ball.png", { type: "image/png" }));
          const options = { dataTransfer: files, bubbles: true, cancelable: true };
          document.body.dispatchEvent(new DragEvent("drop", options));
        }""",
        list(file.getvalue()),
    )
    expect(page.locator("#chosen")).to_contain_text("ball.png")
    expect(page.get_by_label("Describe one object")).to_be_disabled()
    page.get_by_role("button", name="Make it").click()
    expect(page.locator("#title")).to_have_text("ball.png")
    wait_for_splat(page)
    assert page.locator("#stages li").first.get_attribute("data-stage") == "cutout"
    green = view(page)
    assert (
        (green[..., 1] > green[..., 0] + 40) & (green[..., 1] > green[..., 2] + 40)
    ).mean() > 0.05
    page.get_by_role("button", name="Remove").click()


def test_what_is_no_picture_is_refused_before_it_is_sent(page: Page) -> None:
    page.locator("#picture").set_input_files(
        {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello"}
    )
    expect(page.get_by_role("alert").first).to_have_text(
        "Notes.txt is not a PNG, JPEG or WebP picture: choose one of these."
    )


def test_a_refused_prompt_shows_its_sentence_and_what_to_do(page: Page) -> None:
    prompt = page.get_by_label("Describe one object")
    prompt.fill("a \x07 bell")
    page.keyboard.press("Enter")
    refusal = page.get_by_role("alert").first
    expect(refusal).to_contain_text("U+0007")
    expect(refusal).to_contain_text("Change the prompt, the picture or the seed, then try again.")
    prompt.fill("a blue cube")
    page.get_by_label("Seed").fill("4294967296")
    page.keyboard.press("Enter")
    expect(refusal).to_contain_text("from 0 to 4294967295")
    page.get_by_label("Seed").fill("")


def test_several_jobs_run_at_once_and_one_can_be_cancelled(page: Page, gates: Gates) -> None:
    prompt = page.get_by_label("Describe one object")
    for text in ("a blue cube", "a pink mug", "a green tree"):
        prompt.fill(text)
        if text == "a green tree":
            gates.close()  # It must not be done before it is cancelled.
        page.get_by_role("button", name="Make it").click()
        expect(page.locator("#title")).to_have_text(text)
    page.locator("#cancel").click()
    expect(page.locator("#sentence")).to_have_text("Cancelled.")
    gates.open()
    history = page.locator("#history .what")
    expect(history.nth(0)).to_contain_text("cancelled")
    for number in (1, 2):
        expect(history.nth(number)).to_have_attribute("data-tone", "good")


def test_after_a_reload_the_history_is_there_and_can_be_seen_again(page: Page) -> None:
    names = page.locator("#history .name").all_inner_texts()
    assert names == ["a green tree", "a pink mug", "a blue cube", "ball.png", PROMPT]
    page.reload()
    expect(page.locator("#history .name")).to_have_text(names)
    page.locator("#history .pick", has_text=PROMPT).click()
    wait_for_splat(page)
    assert red_share(view(page)) > 0.02
    thumbs = page.locator("#history .thumb").evaluate_all("images => images.map(i => i.src.length)")
    assert sum(length > 200 for length in thumbs) >= 4


def test_what_the_miner_has_forgotten_stays_listed_as_such(page: Page) -> None:
    page.evaluate(
        """async () => {
          for (const { job } of JSON.parse(localStorage.getItem("splat-miner.history"))) {
            if (job.prompt === "a pink mug") await fetch(`/jobs/${job.id}`, { method: "DELETE" });
          }
        }"""
    )
    page.reload()
    mug = page.locator("#history li", has_text="a pink mug")
    expect(mug).to_contain_text("no longer kept by the miner")
    mug.locator(".pick").click()
    expect(page.locator("#sentence")).to_contain_text("no longer keeps this job")
    page.get_by_role("button", name="Again").click()
    expect(page.get_by_label("Describe one object")).to_have_value("a pink mug")


def test_a_prompt_without_a_known_word_is_answered_with_the_known_ones(page: Page) -> None:
    page.get_by_label("Describe one object").fill("a dragon")
    page.keyboard.press("Enter")
    expect(page.locator("#sentence")).to_contain_text("use some of automobile, ball, black")
    expect(page.locator("#advice")).to_have_text(
        "Describe the object with words that the networks know."
    )
    facts = page.locator("#facts").inner_text()
    assert re.search(r"words ignored\s+dragon", facts)
    assert "words understood" not in facts


def test_no_error_was_logged_and_no_other_host_asked(
    watched: WatchedPage, miner: ServedMiner
) -> None:
    assert [error for error in watched.errors if "404" not in error] == []
    own = (f"{miner.url}/", f"blob:{miner.url}/", "about:", "data:")
    assert watched.requests
    assert [url for url in watched.requests if not url.startswith(own)] == []
