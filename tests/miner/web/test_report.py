"""The report of a trial shows its answers in 3D when it is opened from the disk."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from miner.mock_validator.records import TrialRecord, judge
from miner.mock_validator.report import write_report
from protocol import spz
from protocol.gaussians import GaussianCloud
from tests.miner.web.conftest import OpenPage
from tests.support.fakes import ball


def coloured(*dc: float) -> bytes:
    cloud = ball(7_000)
    colors = np.tile(np.array(dc, np.float32), (len(cloud), 1))
    return spz.encode(
        GaussianCloud(
            cloud.positions, cloud.log_scales, cloud.rotations, cloud.opacity_logits, colors
        )
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on a red answer, a blue one of an image task, and one that is missing."""
    folder = tmp_path_factory.mktemp("trial")
    images = folder / "images"
    images.mkdir()
    Image.new("RGB", (64, 64), "blue").save(images / "a ball #1.png")
    asked = (("text", "a red ball", coloured(1.7, -1.7, -1.7)),
             ("image", "a ball #1.png", coloured(-1.7, -1.7, 1.7)))  # fmt: skip
    records = [
        judge(
            TrialRecord(
                name=f"0{number}-ball",
                kind="image" if kind == "image" else "text",
                prompt=prompt,
                task_id=str(number),
                outcome="completed",
                gaussians=7_000,
            ),
            asset,
            folder,
            limit_s=30.0,
        )
        for number, (kind, prompt, asset) in enumerate(asked, start=1)
    ]
    lost = TrialRecord(name="03-x", kind="text", prompt="lost", task_id="3", problems=("late",))
    return write_report(folder, [*records, lost], notes=[], images="images")


def colour(png: bytes) -> int:
    """The channel that stands out in the middle of a picture."""
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    height, width, _ = picture.shape
    middle = picture[height // 3 : -height // 3, width // 3 : -width // 3].mean(axis=(0, 1))
    assert np.sort(middle)[-1] > np.sort(middle)[-2] + 60, middle
    return int(middle.argmax())


def test_answers_turn_in_3d_from_the_disk(report: Path, open_page: OpenPage) -> None:
    watched = open_page(report.as_uri(), turning=True)
    page = watched.page
    red, blue = page.locator(".view").all()
    expect(red.get_by_role("button")).to_have_text("Four views")
    assert colour(red.locator("canvas").screenshot()) == 0
    blue.get_by_role("button", name="Turn in 3D").click()
    expect(blue.get_by_role("button")).to_have_text("Four views")
    assert colour(blue.locator("canvas").screenshot()) == 2
    expect(red.locator("img")).to_be_visible()
    asked = page.get_by_alt_text("the picture of the task")
    assert asked.evaluate("image => image.decode().then(() => image.naturalWidth)") == 64
    watched.close()  # Its object would turn on a whole core.
    assert watched.errors == []
    here = (report.parent.as_uri(), "blob:null/")
    assert [url for url in watched.requests if not url.startswith(here)] == []


def test_limits_are_read_with_their_side(report: Path) -> None:
    page = report.read_text()
    for wanted in ("at least 7,000", "at least 1.5", "at most 0.1", "under 1", "at most 2,000,000"):
        assert f"<td>{wanted}</td>" in page
    assert report.stat().st_size < 50_000


def test_a_phone_shows_the_report_without_scrolling_sideways(
    report: Path, open_page: OpenPage
) -> None:
    page = open_page(report.as_uri(), viewport={"width": 390, "height": 800}).page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
