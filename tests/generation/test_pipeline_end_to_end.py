"""Preset embedded, from the prompt to the bytes of an asset, with nothing replaced."""

import asyncio
import io
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import torch

from generation.pipeline import STAGES, GenerationPipeline
from generation.presets import preset
from generation.weights.store import ModelPaths
from protocol import spz
from protocol.errors import SetupError
from protocol.tasks import ImageTask, TextTask
from scripts.demo import shaded_ball

SETTINGS = preset("embedded")


@pytest.fixture(scope="module")
def embedded_cache(embedded_paths: ModelPaths) -> ModelPaths:
    return embedded_paths


@pytest.fixture
async def pipeline(embedded_cache: ModelPaths) -> AsyncIterator[GenerationPipeline]:
    pipeline = GenerationPipeline(SETTINGS, progress=False)
    await pipeline.start()
    yield pipeline
    await pipeline.close()


async def test_text_and_image_tasks_become_valid_assets(
    pipeline: GenerationPipeline, capfd: pytest.CaptureFixture[str]
) -> None:
    file = io.BytesIO()
    shaded_ball(120).save(file, "PNG")
    text, again, image = await asyncio.gather(
        pipeline.generate(TextTask(id="t", prompt="a blue cube", seed=1)),
        pipeline.generate(TextTask(id="t", prompt="a blue cube", seed=1)),
        pipeline.generate(ImageTask(id="i", image=file.getvalue())),
    )
    assert tuple(text.timings) == STAGES
    assert tuple(image.timings) == STAGES[1:]
    for result in (text, image):
        decoded = spz.decode(result.spz)
        assert len(decoded) == len(result.cloud) >= 7_000
        assert result.validity.passed
        assert result.cutout.width == result.cutout.height
        sides = np.ptp(result.cloud.positions, axis=0)
        assert sides.max() == pytest.approx(1.6, abs=0.01)
    # The same task gives the same bytes; another input another cloud.
    assert again.spz == text.spz
    assert image.spz != text.spz
    assert capfd.readouterr().out == ""


async def test_the_event_loop_is_never_held(embedded_cache: ModelPaths) -> None:
    pipeline = GenerationPipeline(SETTINGS, progress=False)
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            before = time.thread_time()
            await asyncio.sleep(0.005)
            # Processor time of this thread, so that a busy machine does not count against us.
            longest = max(longest, time.thread_time() - before)

    watcher = asyncio.create_task(watch())
    await pipeline.start()
    await pipeline.generate(TextTask(id="t", prompt="a red sports car"))
    watcher.cancel()
    await pipeline.close()
    assert longest < 0.05


async def test_missing_weights_stop_the_start(tmp_path: Path) -> None:
    settings = preset("gpu80").model_copy(update={"device": "cpu"})
    pipeline = GenerationPipeline(settings, models_dir=tmp_path, progress=False)
    with pytest.raises(SetupError, match="has not been downloaded"):
        await pipeline.start()
    await pipeline.close()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
async def test_a_missing_device_stops_the_start(tmp_path: Path) -> None:
    pipeline = GenerationPipeline(preset("gpu80"), models_dir=tmp_path, progress=False)
    with pytest.raises(SetupError, match=r"runs on cuda.*finds no CUDA device"):
        await pipeline.start()
    await pipeline.close()
