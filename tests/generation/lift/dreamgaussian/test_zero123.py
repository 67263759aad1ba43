"""zero123 as guidance, on tiny random weights through the real way of loading."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from generation.lift.dreamgaussian import Dream, KnownView
from generation.lift.dreamgaussian.zero123 import CameraProjection, Zero123
from generation.scoring.validity import check
from protocol.errors import SetupError
from tests.generation.lift.dreamgaussian.test_dream import disc

CPU = torch.device("cpu")
WIDTH = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layout of the public conversions, with few and random weights."""
    folder = tmp_path_factory.mktemp("zero123")
    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=4,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).save_pretrained(folder / "unet")
    AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.5,
    ).save_pretrained(folder / "vae")
    CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            image_size=28,
            patch_size=14,
            projection_dim=WIDTH,
        )
    ).save_pretrained(folder / "image_encoder")
    DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    ).save_pretrained(folder / "scheduler")
    projection = CameraProjection(WIDTH + 4, WIDTH)
    (folder / "clip_camera_projection").mkdir()
    torch.save(
        projection.state_dict(), folder / "clip_camera_projection" / "diffusion_pytorch_model.bin"
    )
    return folder


@pytest.fixture(scope="module")
def guidance(folder: Path) -> Zero123:
    return Zero123.from_pretrained(folder, device=CPU, dtype=torch.float32, scale=5.0)


def gradient(
    guidance: Zero123,
    rgba: NDArray[np.uint8],
    azimuth: float = 1.0,
    seed: int = 1,
    device: torch.device = CPU,
) -> Tensor:
    side = guidance.size
    pictures = torch.full((1, 4, side, side), 0.6, device=device, requires_grad=True)
    loss = guidance.loss(
        guidance.begin(rgba),
        pictures,
        torch.tensor([azimuth]),
        torch.tensor([0.2]),
        0.5,
        torch.Generator().manual_seed(seed),
    )
    torch.autograd.backward([loss])
    assert pictures.grad is not None
    return pictures.grad


def test_its_pictures_have_the_size_of_its_latents(guidance: Zero123) -> None:
    assert guidance.size == 8 * 4
    known = guidance.begin(disc())
    assert known.latent.shape == (1, 4, 8, 8)
    assert known.vector.shape == (1, 1, WIDTH)


def test_the_gradient_depends_on_picture_camera_and_seed(guidance: Zero123) -> None:
    first = gradient(guidance, disc())
    assert first.isfinite().all()
    assert first.abs().sum() > 0
    assert torch.equal(gradient(guidance, disc()), first)
    assert not torch.equal(gradient(guidance, disc((40, 40, 200))), first)
    assert not torch.equal(gradient(guidance, disc(), azimuth=-1.0), first)
    assert not torch.equal(gradient(guidance, disc(), seed=2), first)


def test_recorded_it_gives_the_same_gradient(folder: Path, guidance: Zero123) -> None:
    other = Zero123.from_pretrained(folder, device=CPU, dtype=torch.float32, scale=5.0)
    other.record()
    assert torch.equal(gradient(other, disc()), gradient(guidance, disc()))


@pytest.mark.cuda
def test_recorded_on_a_gpu_it_gives_the_same_gradient(folder: Path, log: list[str]) -> None:
    cuda = torch.device("cuda")
    eager, recorded = (
        Zero123.from_pretrained(folder, device=cuda, dtype=torch.float16, scale=5.0)
        for _ in range(2)
    )
    recorded.record()
    expected = gradient(eager, disc(), device=cuda)
    for _ in range(2):  # The second time, only the graph runs.
        found = gradient(recorded, disc(), device=cuda)
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2 * float(expected.std()))
    assert not log, log


def test_a_projection_in_safetensors_is_the_same(
    folder: Path, guidance: Zero123, tmp_path: Path
) -> None:
    for name in ("unet", "vae", "image_encoder", "scheduler"):
        (tmp_path / name).symlink_to(folder / name)
    part = tmp_path / "clip_camera_projection"
    part.mkdir()
    source = folder / part.name / "diffusion_pytorch_model.bin"
    save_file(torch.load(source, weights_only=True), part / "diffusion_pytorch_model.safetensors")
    other = Zero123.from_pretrained(tmp_path, device=CPU, dtype=torch.float32, scale=5.0)
    assert torch.equal(gradient(other, disc()), gradient(guidance, disc()))


def test_a_missing_or_wrong_part_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="zero123 needs unet"):
        Zero123.from_pretrained(tmp_path, device=CPU, dtype=torch.float32, scale=5.0)
    for name in ("vae", "image_encoder", "scheduler", "clip_camera_projection"):
        (tmp_path / name).symlink_to(folder / name)
    UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).save_pretrained(tmp_path / "unet")
    with pytest.raises(SetupError, match="takes 4 channels, zero123's takes 8"):
        Zero123.from_pretrained(tmp_path, device=CPU, dtype=torch.float32, scale=5.0)


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin"])
@pytest.mark.parametrize("content", [b"", b"not weights"])
def test_a_damaged_projection_is_a_setup_error(
    folder: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    for part in ("unet", "vae", "image_encoder", "scheduler"):
        (tmp_path / part).symlink_to(folder / part)
    (tmp_path / "clip_camera_projection").mkdir()
    (tmp_path / "clip_camera_projection" / name).write_bytes(content)
    with pytest.raises(SetupError, match="cannot be loaded"):
        Zero123.from_pretrained(tmp_path, device=CPU, dtype=torch.float32, scale=5.0)


def test_a_view_from_above_has_a_smaller_angle_from_the_zenith(
    guidance: Zero123, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Tensor] = []
    project = guidance._projection.forward

    def note(context: Tensor) -> Tensor:
        given.append(context[0, 0, -4:])
        return project(context)

    monkeypatch.setattr(guidance._projection, "forward", note)
    gradient(guidance, disc(), azimuth=math.radians(30))
    assert given[0].tolist() == pytest.approx([-0.2, 0.5, math.sqrt(3) / 2, 0.0])


def test_an_object_is_dreamt_with_it(guidance: Zero123) -> None:
    dream = Dream(
        KnownView(disc()), guidance, steps=3, sizes=(16, 24, 32), count=7_500, seed=0, device=CPU
    )
    dream.run(3)
    assert check(dream.result().to_cloud()).passed
