"""The picture of docs/monitoring.md: the monitor's page of a simulated day, in Chromium.

Usage: python -m tests.support.monitor_picture [--out docs/images/monitor.png]

The log is that of `record_day`. Own scores, candidates, words and the pictures of the last assets,
which nothing simulates, are added: scores near what the validators said, pictures of the preset
embedded.
"""

import argparse
import asyncio
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from generation.engine import Engine
from generation.loading import load
from generation.plan import Plan
from generation.presets import preset
from generation.settings import ScoringSettings
from generation.words import understand
from miner.score.alerts import alerts
from miner.score.html import MOST_ASSETS, render_html
from miner.score.report import ScoreReport
from miner.score.thumbnails import FOLDER, SUFFIX
from protocol.tasks import TextTask
from scripts.monitor_terminal import stage_rank
from tests.support.browsing import WatchedPage, chromium
from tests.support.page_pictures import save
from tests.support.simulated_day import BEGIN, DAY_S, record_day

PROMPTS = (
    *("a shiny red car", "an orange house", "a purple mug", "a yellow dragon chair"),
    *("a blue cube", "a tall red rocket", "an orange tree", "a shiny green ball"),
    *("a yellow car", "a green table"),
)
SIDE = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, default=Path("docs/images/monitor.png"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = record_day(Path(name), patch)
        files = (*sorted(folder.glob("score.*.jsonl")), folder / "score.jsonl")
        events = [json.loads(line) for path in files for line in path.read_text().splitlines()]
        events = [event for event in events if event["event"] != "miner_stopped"]
        while events[-1]["event"] == "state_changed":
            del events[-1]  # A miner that still runs.
        tell_scores(events, random.Random(4))
        report = ScoreReport()
        for event in events:
            report.add(event)
        asyncio.run(_draw(folder, report))
        now = BEGIN + DAY_S + 51.0
        page = folder / "page.html"
        page.write_text(
            render_html(
                report,
                state="ready",
                process=f"process {report.pid}",
                alerts=alerts(report, state="ready", now=now),
                now=now,
                folder=folder,
                stage_rank=stage_rank,
            )
        )
        with chromium() as browser:
            size = {"width": 1190, "height": 2620}
            watched = WatchedPage(browser, viewport=size, device_scale_factor=0.8)
            watched.page.goto(page.as_uri())
            save(watched.page, options.out)
            watched.close()


def tell_scores(events: list[dict[str, Any]], chance: random.Random) -> None:
    """Adds own scores, candidates and words to the events of a day."""
    own: dict[str, float] = {}
    for event in events:
        if event["event"] == "feedback" and event["fate"] in ("accepted", "refused"):
            given = event["task_fidelity_score"] if event["fate"] == "accepted" else 0.57
            own[event["task_id"]] = round(min(0.98, max(0.3, chance.gauss(given, 0.04))), 3)
            event |= {"predicted": own[event["task_id"]], "scorer": "embedded"}
    words = preset("embedded").vocabulary
    asked = 0
    for event in events:
        if event["event"] != "answered" or event["outcome"] != "completed":
            continue
        score = own.get(event["task_id"], round(chance.uniform(0.6, 0.9), 3))
        gained, count = chance.expovariate(12.0), chance.randint(2, 6)
        known = understand(PROMPTS[asked % len(PROMPTS)], words)
        asked += 1
        event |= {
            **{"score": score, "first_score": max(0.2, round(score - gained, 3))},
            **{"scorer": "embedded", "candidates": count, "pictures": count, "gated": False},
            **{"candidates_s": round(0.3 * event["total_s"], 2), "gate_limit": 0.6, "margin": 0.0},
            **{"understood": list(known.understood), "ignored": list(known.ignored)},
        }


async def _draw(folder: Path, report: ScoreReport) -> None:
    """Draws what the words of the last assets say, in place of their thumbnails."""
    settings = preset("embedded").model_copy(update={"scoring": ScoringSettings()})
    loaded = load(settings, None, lambda what: None)
    engine = Engine(settings, functions=loaded.functions)
    rung = engine.ladder[0]
    (folder / FOLDER).mkdir(exist_ok=True)
    for event in list(report.completed)[-MOST_ASSETS:]:
        prompt = " ".join(("a", *event["understood"]))
        task = TextTask(id="t", prompt=prompt)
        made = await engine.run(task, Plan(rung, engine.route(task, rung)))
        picture = Image.fromarray(made.cutout).resize((SIDE, SIDE))
        picture.save(folder / FOLDER / f"{event['request_id']}{SUFFIX}")
    await engine.close()


if __name__ == "__main__":
    main()
