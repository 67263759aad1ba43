"""Both encoders against the public code's numbers, and what their files may hold."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from generation.acceleration.graphs import Captured
from generation.lift.triposplat.encoder_config import (
    DinoConfig,
    EncoderConfig,
    VaeConfig,
)
from generation.lift.triposplat.features import (
    DINO_NAME,
    PUBLIC_DINO_NAME,
    PUBLIC_VAE_NAME,
    VAE_NAME,
    PictureEncoders,
    build_dino,
    build_vae,
    fitted,
    latent_tokens,
)
from generation.quiet import quiet_libraries
from generation.weights.checkpoint import CheckpointError

GOLDEN = Path(__file__).parents[3] / "golden" / "triposplat"
DINO_FILE = GOLDEN / "tiny" / "dino" / "model.safetensors"
CONFIG = EncoderConfig(
    dinov3=DinoConfig(
        hidden_size=24, num_attention_heads=2, num_hidden_layers=2, intermediate_size=56
    ),
    vae=VaeConfig(
        block_out_channels=(4, 4, 4, 4), layers_per_block=1, latent_channels=3, norm_num_groups=2
    ),
)
SEED = 42

State = dict[str, Tensor]
Arrays = dict[str, Tensor]


@pytest.fixture(scope="module")
def expected() -> Arrays:
    with np.load(GOLDEN / "tiny" / "cond.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    return np.array(Image.open(GOLDEN / "tiny" / "cond_image.png"))


@pytest.fixture(scope="module")
def whole_vae() -> nn.Module:
    """A VAE of diffusers', with its decoder, random weights and statistics."""
    with quiet_libraries():
        from diffusers import AutoencoderKLFlux2

        torch.manual_seed(0)
        vae: nn.Module = AutoencoderKLFlux2(
            **CONFIG.vae.model_dump(),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        ).eval()
    vae.bn.running_mean.normal_()  # type: ignore[union-attr, operator]
    vae.bn.running_var.uniform_(0.5, 2)  # type: ignore[union-attr, operator]
    return vae


@pytest.fixture(scope="module")
def folder(whole_vae: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    (folder / "config.json").write_text(CONFIG.model_dump_json())
    shutil.copy(DINO_FILE, folder / DINO_NAME)
    save_file(whole_vae.state_dict(), folder / VAE_NAME, {"format": "pt"})
    return folder


@pytest.fixture
def own_folder(folder: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(folder, tmp_path / "model"))


@pytest.fixture(scope="module")
def encoders(folder: Path) -> PictureEncoders:
    return PictureEncoders.from_pretrained(folder)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def far(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    return (found - expected).abs().max().item()


def test_dino_tokens_are_the_references(
    encoders: PictureEncoders, picture: NDArray[np.uint8], expected: Arrays
) -> None:
    assert far(encoders(picture, seeded()).dino, expected["feature1"]) <= 1e-5


def test_latent_tokens_are_the_references(expected: Arrays) -> None:
    norm = nn.BatchNorm2d(12, eps=CONFIG.vae.batch_norm_eps, affine=False).eval()
    norm.running_mean, norm.running_var = expected["bn_running_mean"], expected["bn_running_var"]
    moments, noise = expected["vae_moments"], expected["vae_noise"]
    assert far(latent_tokens(moments, noise, norm), expected["feature2"][:, 5:]) <= 1e-6
    mean_only = latent_tokens(moments, torch.zeros_like(noise), norm)
    assert far(mean_only, expected["feature2_deterministic"]) <= 1e-6


def test_vae_tokens_are_a_sample_of_the_librarys_behind_five_zeros(
    encoders: PictureEncoders, whole_vae: nn.Module, picture: NDArray[np.uint8], expected: Arrays
) -> None:
    with torch.no_grad():
        sample = whole_vae.encode(expected["vae_input"]).latent_dist.sample(seeded())  # type: ignore[operator]
    places = sample.reshape(3, 3, 2, 4, 2).permute(1, 3, 0, 2, 4).reshape(12, 12)
    norm: nn.BatchNorm2d = whole_vae.bn  # type: ignore[assignment]
    assert norm.running_mean is not None
    assert norm.running_var is not None
    tokens = (places - norm.running_mean) / (norm.running_var + 1e-5).sqrt()
    found = encoders(picture, seeded()).vae
    assert not found[:, :5].any()
    assert far(found[0, 5:], tokens) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_seed_gives_the_same_noise_in_every_number_format(
    dtype: torch.dtype,
    folder: Path,
    picture: NDArray[np.uint8],
    expected: Arrays,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoders = PictureEncoders.from_pretrained(folder, dtype=dtype)
    drawn = []
    tokens = encoders.vae_tokens

    def noted(pixels: Tensor, noise: Tensor) -> Tensor:
        drawn.append(noise)
        return tokens(pixels, noise)

    monkeypatch.setattr(encoders, "vae_tokens", noted)
    generator = torch.Generator().manual_seed(int(expected["seed"]))
    encoders(picture, generator)
    assert torch.equal(drawn[0], expected["vae_noise"])
    # What a run draws next.
    for name in ("latent_noise", "camera_noise"):
        assert torch.equal(torch.randn(expected[name].shape, generator=generator), expected[name])


def test_bfloat16_costs_little_and_keeps_positions_and_statistics(
    folder: Path, encoders: PictureEncoders, picture: NDArray[np.uint8]
) -> None:
    narrow = PictureEncoders.from_pretrained(folder, dtype=torch.bfloat16)
    assert narrow.dino.dtype == narrow.vae.dtype == torch.bfloat16
    assert narrow.dino.rope_embeddings.inv_freq.dtype == torch.float32
    assert narrow.vae.bn.running_var.dtype == torch.float32
    for found, wide in zip(narrow(picture, seeded()), encoders(picture, seeded()), strict=True):
        assert far(found, wide) > 0
        assert (found - wide).norm() <= 0.03 * wide.norm()


def test_loaded_networks_are_still_and_hold_no_decoder(encoders: PictureEncoders) -> None:
    for network in (encoders.dino, encoders.vae):
        assert not any(module.training for module in network.modules())
        assert not any(value.requires_grad for value in network.parameters())
        assert not any(value.is_meta for value in network.buffers())
    assert not any(key.startswith(("decoder", "post_")) for key in encoders.vae.state_dict())


def test_the_librarys_own_keys_and_a_vae_without_decoder_load_as_well(
    own_folder: Path, encoders: PictureEncoders, picture: NDArray[np.uint8]
) -> None:
    save_file(encoders.dino.state_dict(), own_folder / DINO_NAME)
    save_file(encoders.vae.state_dict(), own_folder / VAE_NAME)
    again = PictureEncoders.from_pretrained(own_folder)
    for found, wanted in zip(again(picture, seeded()), encoders(picture, seeded()), strict=True):
        assert torch.equal(found, wanted)


def test_without_a_config_files_have_their_public_names(own_folder: Path) -> None:
    (own_folder / "config.json").unlink()
    for name, public in ((DINO_NAME, PUBLIC_DINO_NAME), (VAE_NAME, PUBLIC_VAE_NAME)):
        with pytest.raises(CheckpointError, match=f"holds no {public}"):
            PictureEncoders.from_pretrained(own_folder)
        (own_folder / public).parent.mkdir(exist_ok=True)
        (own_folder / name).rename(own_folder / public)
    # All are found, and are not of the public model's size.
    with pytest.raises(CheckpointError, match=r"does not fit the config: \d+ missing") as caught:
        PictureEncoders.from_pretrained(own_folder)
    assert PUBLIC_DINO_NAME in caught.value.problem
    assert len(caught.value.problem) < 1_000


@pytest.mark.parametrize(
    ("name", "tensors", "left_out", "values"),
    [
        ("clip_vision/dino_v3_vit_h.safetensors", 615, 0, 840_592_640),
        ("vae/flux2-vae.safetensors", 251, 140, 34_426_113),
    ],
)
def test_the_public_files_fit_the_default_networks(
    name: str, tensors: int, left_out: int, values: int
) -> None:
    manifest = json.loads((GOLDEN / "manifest.json").read_text())[name]["tensors"]
    with torch.device("meta"):
        found = {key: torch.empty(shape) for key, (_, shape) in manifest.items()}
        network = build_dino(DinoConfig()) if "dino" in name else build_vae(VaeConfig())
    state = fitted(Path(name), found, network)
    assert len(manifest) == tensors
    assert len(state) == tensors - left_out
    assert state.keys() == network.state_dict().keys()
    assert sum(value.numel() for value in state.values()) == values
    with pytest.raises(CheckpointError, match="does not fit the config"):
        fitted(Path(name), dict(list(found.items())[1:]), network)


def _without(key: str) -> Callable[[State], None]:
    return lambda state: state.__delitem__(key)


def _with(key: str, value: Tensor) -> Callable[[State], None]:
    return lambda state: state.__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _with("model.layer.1.norm1.weight", torch.zeros(24)),
            r"1 surplus: layer\.1\.norm1\.weight \(found \(24,\)\)",
        ),
        (
            _without("layer.1.norm1.weight"),
            r"1 missing: model\.layer\.1\.norm1\.weight \(expected \(24,\)\)",
        ),
        (_with("head.weight", torch.zeros(2, 3)), r"1 surplus: head\.weight \(found \(2, 3\)\)"),
        (
            _with("layer.0.attention.q_proj.weight", torch.zeros(24, 23)),
            r"q_proj\.weight \(found \(24, 23\), expected \(24, 24\)\)",
        ),
        (
            _with("norm.weight", torch.zeros(24, dtype=torch.float8_e4m3fn)),
            r"1 narrower than 16 bits: norm\.weight \(found torch\.float8_e4m3fn, expected fl",
        ),
    ],
    ids=["twice", "missing", "surplus", "misshapen", "eight bits"],
)
def test_a_file_that_does_not_fit_is_refused(
    change: Callable[[State], None], message: str, own_folder: Path
) -> None:
    state = load_file(DINO_FILE)
    change(state)
    save_file(state, own_folder / DINO_NAME)
    with pytest.raises(CheckpointError, match=message) as caught:
        PictureEncoders.from_pretrained(own_folder)
    assert str(own_folder / DINO_NAME) in caught.value.problem
    assert "config.json" in caught.value.fix


def test_what_is_no_safetensors_file_is_refused(own_folder: Path) -> None:
    (own_folder / VAE_NAME).write_bytes(b"<html>not found</html>")
    with pytest.raises(CheckpointError, match=r"vae\.safetensors \(22 bytes\) is damaged"):
        PictureEncoders.from_pretrained(own_folder)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((48, 64, 4), np.uint8), r"has shape \(48, 64, 4\)"),
        (np.zeros((48, 64, 3), np.float32), r"holds torch\.float32"),
        (np.zeros((48, 72, 3), np.uint8), "is 72 x 48 pixels, expected multiples of 16"),
    ],
    ids=["alpha", "floats", "no multiple"],
)
def test_a_picture_that_is_not_prepared_is_refused(
    encoders: PictureEncoders, picture: NDArray[np.uint8], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        encoders(picture, seeded())


@pytest.mark.cuda
def test_on_a_gpu_a_seed_gives_the_same_features(
    folder: Path, encoders: PictureEncoders, picture: NDArray[np.uint8]
) -> None:
    on_gpu = PictureEncoders.from_pretrained(folder, device="cuda")
    assert on_gpu.dino.dtype == on_gpu.vae.dtype == torch.bfloat16
    for found, wide in zip(on_gpu(picture, seeded()), encoders(picture, seeded()), strict=True):
        assert found.is_cuda
        assert (found.cpu() - wide).norm() <= 0.03 * wide.norm()


@pytest.mark.cuda
def test_both_encoders_can_be_recorded_as_graphs(
    folder: Path, picture: NDArray[np.uint8], log: list[str]
) -> None:
    encoders = PictureEncoders.from_pretrained(folder, device="cuda")
    eager = encoders(picture, seeded())
    encoders.dino_tokens = Captured("DINOv3", encoders.dino_tokens)  # type: ignore[method-assign]
    encoders.vae_tokens = Captured("VAE", encoders.vae_tokens)  # type: ignore[method-assign]
    encoders(np.zeros_like(picture), torch.Generator().manual_seed(1))
    for found, expected in zip(encoders(picture, seeded()), eager, strict=True):
        assert (found - expected).norm() <= 1e-3 * expected.norm()
    assert not log, log
