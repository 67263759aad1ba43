"""Every line of the recipe, at toy size: draw, train, export, load, lift."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from generation.lift.triposplat import Sampler, TripoSplat
from generation.lift.triposplat.features import PictureEncoders
from generation.lift.triposr import TripoSR
from generation.pictures.cutout import BackgroundRemover
from generation.pictures.flux1 import Flux1
from generation.settings import CutoutSettings, TextToImageSettings
from scripts.train_embedded import export, jobs, train_flux, train_saliency
from scripts.train_embedded.drawing import draw_world
from scripts.train_embedded.recipe import TINY, Places, Recipe
from scripts.train_embedded.text import T5_LENGTH

SIZE = 64


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    places = Places(folder / "state", folder / "out")
    with warnings.catch_warnings():
        # The libraries warn of their own future while they save.
        warnings.simplefilter("ignore")
        draw_world(TINY, places, torch.device("cpu"))
        jobs.train_all(TINY, places, "cpu")
    return places.out


def finishes(recipe: Recipe, places: Places, device: str) -> None:
    places.state.mkdir(parents=True, exist_ok=True)
    (places.state / "finished").touch()


def breaks(recipe: Recipe, places: Places, device: str) -> None:
    raise FloatingPointError


def test_a_job_that_breaks_ends_the_round_and_is_named(tmp_path: Path) -> None:
    places = Places(tmp_path / "state", tmp_path / "out")
    jobs._side_by_side((finishes,), TINY, places, "cuda")
    assert (places.state / "finished").exists()
    with pytest.raises(SystemExit, match="training failed: breaks; run again to resume"):
        jobs._side_by_side((finishes, breaks), TINY, places, "cuda")


@pytest.mark.filterwarnings("ignore")
def test_an_autoencoder_that_is_finished_is_left_alone(trained: Path) -> None:
    places = Places(trained.parent / "state", trained)
    before = {file: file.stat().st_mtime_ns for file in places.vae.iterdir()}
    jobs.autoencoder(TINY, places, "cpu")
    assert before == {file: file.stat().st_mtime_ns for file in places.vae.iterdir()}


@pytest.mark.filterwarnings("ignore")
def test_all_networks_are_written_in_half_precision(trained: Path) -> None:
    files = sorted(trained.rglob("*.safetensors"))
    assert len(files) == 9
    for file in files:
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}, file


def test_no_file_tells_where_it_was_made(trained: Path) -> None:
    files = sorted(trained.rglob("*.json"))
    assert len(files) >= 8
    assert not [file for file in files if str(trained) in file.read_text(encoding="utf-8")]


@pytest.mark.filterwarnings("ignore")
def test_the_exported_flux_computes_what_was_trained(trained: Path) -> None:
    settings = TextToImageSettings(size=SIZE, steps=3, max_sequence_length=T5_LENGTH)
    draw = Flux1.from_pretrained(trained / export.FLUX, settings, "cpu")
    prompt = "A shiny red cube, blorgh"
    assert draw(prompt, 1).size == (SIZE, SIZE)

    pipeline = draw.pipeline
    parts = {"clip": pipeline.text_encoder, "t5": pipeline.text_encoder_2}
    networks = torch.nn.ModuleDict({"transformer": pipeline.transformer, **parts})
    side = SIZE // 8
    noise = torch.randn(1, 16, side, side, generator=torch.Generator().manual_seed(3))
    latents = train_flux.pack(noise)
    clip, t5 = train_flux.token_ids([prompt])
    with torch.no_grad():
        for step in range(3):
            time = torch.tensor([1 - step / 3])
            latents -= train_flux.predict_flow(networks, latents, time, clip, t5) / 3
    expected = pipeline(
        prompt=prompt,
        height=SIZE,
        width=SIZE,
        num_inference_steps=3,
        guidance_scale=0.0,
        max_sequence_length=T5_LENGTH,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).images
    torch.testing.assert_close(latents, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_the_exported_saliency_network_computes_what_was_trained(trained: Path) -> None:
    import onnxruntime

    model = train_saliency.SaliencyNet(TINY.saliency_width)
    state = torch.load(trained.parent / "state" / "saliency.pt", weights_only=True)["averaged"]
    prefix = "module."
    model.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if prefix in k})
    images = torch.rand(1, 3, train_saliency.SIZE, train_saliency.SIZE)
    file = trained / export.BACKGROUND
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    mask = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    with torch.no_grad():
        expected = model.eval()(images)
    np.testing.assert_allclose(mask, expected, atol=1e-3)
    assert BackgroundRemover(file, CutoutSettings(threads=1)).settings.threads == 1


@pytest.mark.filterwarnings("ignore")
def test_the_exported_triposr_loads_and_answers(trained: Path) -> None:
    model = TripoSR.from_pretrained(trained / export.TRIPOSR)
    code = model.scene_codes(Image.new("RGB", (50, 50), (127, 127, 127)))
    density = model.density_grid(code, 8)
    assert density.shape == (8, 8, 8)
    assert density.isfinite().all()


@pytest.mark.filterwarnings("ignore")
def test_the_exported_triposplat_loads_and_makes_gaussians_of_a_picture(trained: Path) -> None:
    folder = trained / export.TRIPOSPLAT
    model = TripoSplat.from_pretrained(folder)
    encoders = PictureEncoders.from_pretrained(folder)
    plan = TINY.splat_plan
    assert model.config == plan.config
    assert encoders.picture_size == plan.encoders.picture_size
    generator = torch.Generator().manual_seed(1)
    picture = np.zeros((encoders.picture_size, encoders.picture_size, 3), np.uint8)
    latent = Sampler(model.flow, *encoders(picture, generator), steps=2).sample(generator)
    made = model.decoder.decode(latent, 10, seed=1)
    assert made.positions.shape == (10, 3)
    assert made.positions.isfinite().all()
    # Opacity is set, not learnt.
    opacity = plan.config.gaussian.opacity_bias
    torch.testing.assert_close(made.opacity_logits.sigmoid(), torch.full((10,), opacity))


@pytest.mark.filterwarnings("ignore")
def test_finished_surfaces_and_pictures_are_left_alone(trained: Path) -> None:
    places = Places(trained.parent / "state", trained)
    files = [places.surfaces, *sorted((places.state / "pictures").iterdir())]
    assert len(files) == 2
    before = [file.stat().st_mtime_ns for file in files]
    jobs.image_to_splats(TINY, places, "cpu")
    assert before == [file.stat().st_mtime_ns for file in files]
