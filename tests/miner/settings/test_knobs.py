"""Every generation setting reaches what it says it changes, in the preset `embedded`."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from generation.engine import Engine
from generation.errors import NoObject
from generation.lift import stages_of
from generation.lift.triposr import TripoSR
from generation.lift.triposr.loading import functions_of, load_network
from generation.loading import (
    LoadedStages,
    PictureNetworks,
    assemble,
    load_pictures,
    require_device,
)
from generation.packing import Splats
from generation.pictures.cutout import BackgroundRemover
from generation.pictures.flux1 import Flux1
from generation.plan import Plan, StepEvent
from generation.presets import PRESETS, changes, variant
from generation.settings import GenerationFields, GenerationSettings
from generation.stage import SPLATS, StepContext
from generation.weights.store import locate_models
from miner.engines.local import LocalEngine
from miner.settings.miner import MinerConfig
from miner.settings.model import flatten, settings_of
from miner.settings.reader import read_settings
from protocol import spz
from protocol.errors import SetupError
from protocol.gaussians import GaussianCloud
from protocol.tasks import TextTask
from scripts.demo import shaded_ball

CPU = torch.device("cpu")
QUICK = ("--splats.max_gaussians=1500", "--splats.resolution=32", "--text_to_image.size=64")
BALL = torch.from_numpy(np.array(shaded_ball(96)))


def generation(*argv: str, **environ: str) -> GenerationSettings:
    return read_settings(
        MinerConfig,
        prog="miner",
        env_prefix="MINER",
        argv=("--chain.file=neurons.json", *argv),
        environ=environ,
    ).generation


@dataclass(frozen=True)
class Networks:
    """The shipped networks, loaded once; every test wires them as its settings say."""

    pictures: PictureNetworks
    triposr: TripoSR

    def stages(self, settings: GenerationSettings) -> LoadedStages:
        flux = Flux1(self.pictures.flux.pipeline, settings.text_to_image)
        background = BackgroundRemover(locate_models(settings).cutout, settings.cutout)
        pictures = PictureNetworks(flux, background)
        return assemble(settings, pictures, {"triposr": functions_of(settings, self.triposr)})

    def run(self, stage: str, value: Any, *argv: str) -> Any:
        """The result of one stage at the best rung of these settings."""
        settings = generation(*QUICK, *argv)
        context = StepContext(TextTask(id="t", prompt="a ball"), settings.ladder[0])
        return self.stages(settings).functions[stage](value, context)

    def draw(self, *argv: str, prompt: str = "a blue cube") -> NDArray[np.uint8]:
        settings = generation(*QUICK, "--text_to_image.steps=1", *argv).text_to_image
        return np.asarray(Flux1(self.pictures.flux.pipeline, settings)(prompt))


@pytest.fixture(scope="module")
def networks() -> Networks:
    settings = generation()
    return Networks(load_pictures(settings, None, CPU), load_network(settings, None, CPU))


@pytest.fixture(scope="module")
def drawn(networks: Networks) -> NDArray[np.uint8]:
    return networks.draw()


@pytest.fixture(scope="module")
def code(networks: Networks) -> Any:
    """The scene code of a ball."""
    return networks.run("lift", networks.run("cutout", BALL))


def cloud_of(networks: Networks, code: Any, *argv: str) -> GaussianCloud:
    splats = networks.run("splats", code, *argv)
    assert isinstance(splats, Splats)
    return splats.cloud


@pytest.fixture(scope="module")
def usual(networks: Networks, code: Any) -> GaussianCloud:
    return cloud_of(networks, code)


async def test_steps_and_size_are_those_of_the_plan_and_the_picture(networks: Networks) -> None:
    knobs = ("--text_to_image.steps=3", "--text_to_image.size=96", "--scoring.scorer=none")
    settings = generation(*knobs)
    engine = Engine(settings, functions=networks.stages(settings).functions, progress=False)
    task, rung, ended = TextTask(id="t", prompt="a blue cube"), engine.ladder[0], []

    def on_event(event: StepEvent) -> None:
        ended.extend([event.step.stage] if event.kind == "finished" else [])

    made = await engine.run(task, Plan(rung, engine.route(task, rung)), on_event=on_event)
    await engine.close()
    assert ended.count("denoise") == 3
    assert made.image.shape == (96, 96, 3)


@pytest.mark.parametrize(
    "knob",
    ["--text_to_image.seed=1", "--text_to_image.max_sequence_length=4", "--text_to_image.steps=2"],
)
def test_the_picture_follows_its_settings(
    networks: Networks, drawn: NDArray[np.uint8], knob: str
) -> None:
    assert (networks.draw(knob) != drawn).any()


def test_the_template_is_what_is_drawn(networks: Networks, drawn: NDArray[np.uint8]) -> None:
    there = networks.draw("--text_to_image.template=a blue {prompt}", prompt="cube")
    assert (there == drawn).all()


@pytest.mark.parametrize("ratio", [0.5, 0.85])
def test_the_foreground_ratio_is_the_share_of_the_object(networks: Networks, ratio: float) -> None:
    cutout = networks.run("cutout", BALL, f"--cutout.foreground_ratio={ratio}").rgba
    left, top, right, bottom = Image.fromarray(cutout).getchannel("A").getbbox() or (0,) * 4
    assert max(right - left, bottom - top) / len(cutout) == pytest.approx(ratio, abs=0.03)


@pytest.mark.parametrize(("knob", "calls"), [("true", 0), ("false", 1)])
def test_a_plain_border_needs_no_network_where_it_is_skipped(
    networks: Networks, monkeypatch: pytest.MonkeyPatch, knob: str, calls: int
) -> None:
    asked = []
    real = BackgroundRemover.__init__

    def watched(self: BackgroundRemover, *arguments: Any) -> None:
        real(self, *arguments)
        mask = self._mask

        def ask(picture: torch.Tensor) -> torch.Tensor:
            asked.append(picture)
            return mask(picture)

        self._mask = ask

    monkeypatch.setattr(BackgroundRemover, "__init__", watched)
    networks.run("cutout", BALL, f"--cutout.skip_plain={knob}")
    assert len(asked) == calls


def test_the_least_coverage_decides_what_is_an_object(networks: Networks) -> None:
    with pytest.raises(NoObject, match="at least 90"):
        networks.run("cutout", BALL, "--cutout.min_coverage=0.9")


def test_points_are_decoded_in_chunks_of_the_given_size(networks: Networks, code: Any) -> None:
    network = load_network(generation("--triposr.chunk_size=4096"), None, CPU)
    chunks: list[int] = []
    network.decoder.register_forward_pre_hook(lambda _, given: chunks.append(len(given[0])))
    points = torch.rand(10_000, 3) - 0.5
    inside, colours = network.query(points, code)
    assert chunks == [4096, 4096, 10_000 - 2 * 4096]
    for mine, theirs in zip((inside, colours), networks.triposr.query(points, code), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_most_gaussians_bound_the_cloud(networks: Networks, code: Any) -> None:
    assert 300 < len(cloud_of(networks, code, "--splats.max_gaussians=700")) <= 700


@pytest.mark.parametrize(
    "knob",
    [
        "--splats.resolution=24",
        "--splats.threshold=15",
        "--splats.disc_sigma=1.2",
        "--splats.inset=0.02",
        "--splats.thickness=0.5",
        "--splats.opacity_logit=3",
        "--splats.seed=5",
    ],
)
def test_the_cloud_follows_its_settings(
    networks: Networks, code: Any, usual: GaussianCloud, knob: str
) -> None:
    assert spz.encode(cloud_of(networks, code)) == spz.encode(usual)
    assert spz.encode(cloud_of(networks, code, knob)) != spz.encode(usual)


def test_the_mesh_has_its_resolution_and_at_most_its_triangles(
    networks: Networks, code: Any
) -> None:
    counts = {}
    for resolution, most in ((32, 50_000), (64, 50_000), (64, 500)):
        knobs = (f"--mesh.resolution={resolution}", f"--mesh.triangles={most}")
        counts[resolution, most] = len(networks.run("mesh", code, *knobs).faces)
    assert counts[64, 500] <= 500 < counts[32, 50_000] < counts[64, 50_000] / 2


def test_the_level_of_the_file_is_given(networks: Networks, code: Any) -> None:
    splats = networks.run("splats", code, "--splats.max_gaussians=7500")
    low, high = (networks.run("encode", splats, f"--spz_level={level}").spz for level in (1, 19))
    assert len(high) < len(low)
    assert (spz.decode(high).positions == spz.decode(low).positions).all()


def test_the_device_is_where_the_networks_run() -> None:
    settings = generation("--device=cuda:77")
    with pytest.raises(SetupError, match="preset embedded runs on cuda:77, but torch"):
        require_device(settings)
    assert SPLATS in {stage.lane for stage in stages_of(settings, settings.lift.backend)}
    on_cpu = generation("--preset=gpu80", "--device=cpu")
    assert require_device(on_cpu) == CPU
    assert SPLATS not in {stage.lane for stage in stages_of(on_cpu, on_cpu.lift.backend)}


@pytest.mark.parametrize(
    ("knob", "message"),
    [
        ("--lift.backend=dreamer", "--lift.backend cannot be 'dreamer' .*: Input should be 'tripo"),
        ("--text_to_image.size=100", "--text_to_image.size cannot be '100' .* a multiple of 16"),
        ("--text_to_image.template=a cat", "--text_to_image.template .*contain {prompt} exactly"),
        ("--device=gpu", "--device cannot be 'gpu' .*: it is neither cpu nor cuda nor one of"),
        ("--rungs=[{name: a, step: 2}]", "--rungs .*: 0.step: Extra inputs are not permitted"),
        ("--text_to_image.model.repo=a/b", "--text_to_image.model.files is missing"),
        ("--text_to_image.step=2", "unknown argument '--text_to_image.step=2'"),
        ("--preset=gpu40", "no preset 'gpu40'; the presets are embedded, gpu16, gpu24, gpu80"),
    ],
)
def test_what_cannot_be_made_is_refused_with_what_can(knob: str, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        generation(knob)


def test_a_source_of_weights_needs_one_for_every_model() -> None:
    source = "{repo: a/b, files: [x], licence: MIT}"
    settings = generation(f"--text_to_image.model={source}")
    assert (settings.models[0].name, settings.knows, settings.vocabulary) == ("a/b", "", ())
    with pytest.raises(
        SetupError, match=r"--cutout\.model is null, but other models of preset embedded"
    ):
        locate_models(settings)


def test_the_rungs_of_the_operator_take_the_place_of_the_presets() -> None:
    rungs = "[{name: rough, steps: 2, gaussians: 5000}]"
    for settings in (generation(f"--rungs={rungs}"), generation(MINER_RUNGS=rungs)):
        assert [(rung.name, rung.steps, rung.gaussians) for rung in settings.ladder] == [
            ("full", 8, 20_000),
            ("rough", 2, 5_000),
        ]
    # No rung asks for more than the settings.
    assert {rung.steps for rung in generation("--text_to_image.steps=2").ladder} == {2}


OTHER = {
    "device": "cuda:1",
    "text_to_image.dtype": "bfloat16",
    "text_to_image.size": "384",
    "text_to_image.steps": "2",
    "text_to_image.guidance": "1.5",
    "text_to_image.max_sequence_length": "64",
    "text_to_image.seed": "9",
    "text_to_image.template": "my {prompt}",
    "text_to_image.batch": "3",
    "text_to_image.eight_bit": "true",
    "cutout.runtime": "torch",
    "cutout.dtype": "bfloat16",
    "cutout.providers": "A,B",
    "cutout.threads": "3",
    "cutout.skip_plain": "true",
    "cutout.foreground_ratio": "0.7",
    "cutout.min_coverage": "0.5",
    "triposr.dtype": "bfloat16",
    "triposr.chunk_size": "4096",
    "lift.backend": "triposplat",
    "triposplat.accept_dinov3_license": "true",
    "triposplat.dtype": "bfloat16",
    "triposplat.steps": "6",
    "triposplat.guidance": "2.5",
    "triposplat.shift": "2.0",
    "triposplat.max_gaussians": "9999",
    "triposplat.eight_bit": "true",
    "triposplat.seed": "9",
    "dreamgaussian.guidance": "zero123",
    "dreamgaussian.accept_openrail_license": "true",
    "dreamgaussian.dtype": "float16",
    "dreamgaussian.scale": "3.0",
    "dreamgaussian.steps": "70",
    "dreamgaussian.slice": "3",
    "dreamgaussian.sizes": "20,30,40",
    "dreamgaussian.count": "7777",
    "dreamgaussian.max_gaussians": "9999",
    "dreamgaussian.elevation": "5.0",
    "dreamgaussian.fov": "33.0",
    "dreamgaussian.seed": "9",
    "refine.steps": "30",
    "refine.slice": "7",
    "refine.size": "96",
    "refine.fov": "50.0",
    "refine.elevation": "3.0",
    "refine.spread": "4.0",
    "splats.max_gaussians": "77",
    "splats.resolution": "192",
    "splats.threshold": "9.5",
    "splats.min_component": "0.25",
    "splats.disc_sigma": "0.5",
    "splats.inset": "0.01",
    "splats.thickness": "0.2",
    "splats.opacity_logit": "4.5",
    "splats.seed": "9",
    "mesh.resolution": "96",
    "mesh.triangles": "777",
    "scoring.scorer": "validator",
    "scoring.image_alignment": "llm2clip",
    "scoring.dtype": "float16",
    "rungs": "[{name: a, steps: 1}]",
    "spz_level": "9",
    "accelerate": "true",
}


def test_every_generation_setting_is_among_those_tried_here() -> None:
    names = {name for name in settings_of(GenerationFields) if not re.search(r"model\b", name)}
    assert names == {*OTHER}


@pytest.mark.parametrize("name", OTHER)
def test_every_generation_setting_can_be_set_in_all_three_places(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("settings") / "miner.yaml"
    file.write_text(f"{name}: {OTHER[name]!r}" if name != "rungs" else f"rungs: {OTHER[name]}")
    variable = f"MINER_{name.upper().replace('.', '_')}"
    made = [
        generation(f"--{name}={OTHER[name]}"),
        generation(**{variable: OTHER[name]}),
        generation(f"--config={file}"),
    ]
    assert made[0] == made[1] == made[2]
    before, after = flatten(PRESETS["embedded"]), flatten(made[0])
    assert {key for key in after if after[key] != before[key]} == {name}
    assert set(changes(made[0])) == {name}


def test_what_was_learned_of_a_preset_does_not_count_for_a_changed_one() -> None:
    kept = {name: variant(generation(f"--{name}={value}")) for name, value in OTHER.items()}
    assert variant(generation()) == variant(generation("--device=cpu")) == "embedded"
    # The device is in the key by itself, and a licence changes no object.
    unchanged = {name for name, key in kept.items() if key == "embedded"}
    licences = {"triposplat.accept_dinov3_license", "dreamgaussian.accept_openrail_license"}
    assert unchanged == {"device", *licences}
    assert len({*kept.values()}) == len(OTHER) - len(unchanged) + 1
    changed = LocalEngine(generation("--splats.resolution=48")).machine
    assert changed.startswith("embedded changed ")
    assert LocalEngine(generation()).machine.startswith("embedded on ")
