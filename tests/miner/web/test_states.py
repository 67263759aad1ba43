"""The page says what the miner is about, asks for its key, and fits small and old browsers."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from generation.lift import BACK_ENDS
from generation.stage import ENCODE, PICTURE_STAGES, REFINE, SCORE_STAGE
from miner import web
from tests.miner.web.conftest import OpenPage
from tests.support.browsing import ServedMiner
from tests.support.fakes import FakeEngine

Serve = Callable[..., ServedMiner]
STATIC = Path(web.__file__).parent / "static"


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Serves miners with a fake engine, which answers at once."""
    served: list[ServedMiner] = []

    def new(engine: FakeEngine | None = None, **settings: Any) -> ServedMiner:
        served.append(ServedMiner(tmp_path, engine or FakeEngine(), **settings))
        return served[-1]

    yield new
    for miner in served:
        miner.close()


def test_a_miner_that_warms_up_says_so_and_a_refused_request_what_to_do(
    serve: Serve, open_page: OpenPage
) -> None:
    watched = open_page(serve(ready=False).url)
    page = watched.page
    expect(page.locator("#state")).to_have_text("Starting")
    page.get_by_role("button", name="a red car").click()
    page.keyboard.press("Enter")
    expect(page.locator("#sentence")).to_contain_text("Dropped.")
    expect(page.locator("#advice")).to_contain_text(
        "Try again when the line at the top says Ready."
    )
    assert watched.errors == []


def test_the_key_is_asked_for_where_one_is_needed_and_kept_for_the_tab(
    serve: Serve, open_page: OpenPage
) -> None:
    miner = serve(api_key="geheimer Schlüssel")
    watched = open_page(miner.url, "401")
    page = watched.page
    key = page.get_by_label("API key", exact=True)
    expect(page.locator("#state")).to_have_text("Needs a key")
    key.fill("a wrong one")
    page.keyboard.press("Enter")
    expect(key).to_have_value("")
    expect(key).to_be_visible()
    key.fill("geheimer Schlüssel")
    page.keyboard.press("Enter")
    expect(page.locator("#state")).to_have_text("Ready")
    expect(key).to_be_hidden()
    page.get_by_label("Describe one object").fill("a red car")
    page.get_by_role("button", name="Make it").click()
    expect(page.locator("#sentence")).to_contain_text("Done in")
    expect(page.locator("#tools")).to_be_visible()
    page.reload()
    expect(page.locator("#state")).to_have_text("Ready")
    assert page.evaluate("JSON.stringify(localStorage)").find("Schl") == -1
    assert watched.errors == []


def test_a_miner_without_a_key_never_asks_for_one(serve: Serve, open_page: OpenPage) -> None:
    page = open_page(serve().url).page
    expect(page.locator("#state")).to_have_text("Ready")
    expect(page.get_by_label("API key", exact=True)).to_be_hidden()


def test_the_page_fits_a_phone_in_light_and_dark(serve: Serve, open_page: OpenPage) -> None:
    page = open_page(serve().url, viewport={"width": 360, "height": 740}).page
    page.get_by_label("Describe one object").fill(
        "a " + "very " * 30 + "long-named-cube" * 4 + " cube"
    )
    page.get_by_role("button", name="Make it").click()
    expect(page.locator("#sentence")).to_contain_text("Done in")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for scheme, is_light in (("light", True), ("dark", False)):
        page.emulate_media(color_scheme="light" if scheme == "light" else "dark")
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, ground[4:-1].split(","))) > 384) == is_light, scheme


def test_candidates_are_chosen_counted_while_they_are_made_and_scored(
    serve: Serve, open_page: OpenPage
) -> None:
    worths = iter((0.4, 0.7, 0.5, 0.5))
    seen: dict[int | None, float] = {}
    engine = FakeEngine(worth=lambda task: seen.setdefault(task.seed, next(worths, 0.3)))
    engine.hold_at = "rate"
    miner = serve(engine, candidates=32, send_gated=False)
    watched = open_page(miner.url, "422", viewport={"width": 360, "height": 740})
    page = watched.page
    page.get_by_label("Describe one object").fill("a red car")
    expect(page.get_by_label("Candidates")).to_have_value("4")
    page.get_by_role("button", name="Make it").click()
    expect(page.locator("#overlay-text")).to_have_text("Candidate 1 of 4, best 0.40")
    expect(page.locator("#sentence")).to_contain_text("Candidate 1 of 4, best 0.40.")
    expect(page.locator("#history .what").first).to_contain_text("candidate 1 of 4, best 0.40")
    miner.release(engine)
    expect(page.locator("#sentence")).to_contain_text("Score 0.70, the best of 4.")
    facts = page.locator("#facts")
    expect(facts).to_contain_text("0.70 by fake, object 0.70")
    for words in ("first score0.40", "candidates4 of at most 4", "gatepassed: its score 0.700"):
        expect(facts).to_contain_text(words)
    seen.clear()
    page.get_by_label("Candidates").select_option("1")
    page.get_by_role("button", name="Make it").click()
    expect(page.locator("#sentence")).to_contain_text("Withheld. Its score 0.300 is below 0.600")
    expect(page.locator("#advice")).to_contain_text("allow more candidates")
    expect(facts.get_by_text("SPZ")).to_have_count(0)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert watched.errors == []


def test_a_miner_that_makes_no_mesh_offers_none_and_its_quality_level_has_the_steps_in_3d(
    serve: Serve, open_page: OpenPage
) -> None:
    watched = open_page(serve(FakeEngine(back_end="triposplat")).url)
    page = watched.page
    page.get_by_role("button", name="a red car").click()
    page.keyboard.press("Enter")
    expect(page.locator("#sentence")).to_contain_text("Done in")
    assert page.locator("#downloads button").all_inner_texts() == [".ply", ".spz", ".png"]
    expect(page.locator("#stages li[data-stage=flow]")).to_contain_text("Shape it in 3D")
    expect(page.locator("#facts")).to_contain_text(
        "full: 8 steps of a 128 px picture, 20 steps in 3D, at most 40,000 Gaussians"
    )
    assert watched.errors == []


def test_the_page_has_words_for_every_stage_of_a_request() -> None:
    words = (STATIC / "words.js").read_text(encoding="utf-8")
    lifting = [stage for back_end in BACK_ENDS.values() for stage in back_end.stages]
    for stage in (*PICTURE_STAGES, *lifting, REFINE, ENCODE, SCORE_STAGE):
        assert f'\n  {stage.name}: "' in words, stage.name


def test_a_browser_without_webgl_shows_the_preview(serve: Serve, open_page: OpenPage) -> None:
    watched = open_page("about:blank")
    watched.page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    watched.page.goto(serve().url)
    watched.page.get_by_label("Describe one object").fill("a red car")
    watched.page.keyboard.press("Enter")
    shown = watched.page.locator("#fallback")
    expect(shown).to_be_visible()
    assert shown.evaluate("image => image.decode().then(() => image.naturalWidth)") == 517
    assert watched.errors == []


UNREADABLE = (
    "null",
    "[null, 1, {}]",
    '[{"id": "x", "title": "older", "startedAt": 1, "job": {"state": "done"}}]',
    '[{"id": "x", "title": "t", "startedAt": 1, "job": {"state": "done", "elapsed_s": 1, '
    '"files": {}, "stages": [{}], "predicted_s": null, "seed": null, "gaussians": null, '
    '"bytes": null, "score": null}}]',
)


def test_a_history_that_this_version_cannot_read_is_left_out(
    serve: Serve, open_page: OpenPage
) -> None:
    watched = open_page(serve().url)
    page = watched.page
    for stored in UNREADABLE:
        page.evaluate("stored => localStorage.setItem('splat-miner.history', stored)", stored)
        page.reload()
        expect(page.locator("#state")).to_have_text("Ready")
        expect(page.locator("#history li")).to_have_count(0)
    page.get_by_role("button", name="a red car").click()
    page.keyboard.press("Enter")
    expect(page.locator("#history li")).to_have_count(1)
    page.reload()
    expect(page.locator("#history li")).to_have_count(1)
    assert watched.errors == []
