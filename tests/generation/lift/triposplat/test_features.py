"""Both encoders against the public code's numbers, and what their files may hold."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from generation.lift.triposplat.features import (
    DinoConfig,
    PictureEncoders,
    VaeConfig,
    build_dino,
    build_vae,
    latent_tokens,
    match_keys,
)
from generation.lift.triposr.errors import CheckpointError
from generation.quiet import quiet_libraries

GOLDEN = Path(__file__).parents[3] / "golden" / "triposplat"
DINO_FILE = GOLDEN / "tiny" / "dino" / "model.safetensors"
DINO = DinoConfig(hidden_size=24, num_attention_heads=2, num_hidden_layers=2, intermediate_size=56)
VAE = VaeConfig(
    block_out_channels=(4, 4, 4, 4), layers_per_block=1, latent_channels=3, norm_num_groups=2
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
        vae: nn.Module = AutoencoderKLFlux2(**asdict(VAE)).eval()
    vae.bn.running_mean.normal_()  # type: ignore[union-attr, operator]
    vae.bn.running_var.uniform_(0.5, 2)  # type: ignore[union-attr, operator]
    return vae


@pytest.fixture(scope="module")
def vae_file(whole_vae: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("vae") / "flux2-vae.safetensors"
    save_file(whole_vae.state_dict(), file, {"format": "pt"})
    return file


@pytest.fixture(scope="module")
def encoders(vae_file: Path) -> PictureEncoders:
    return PictureEncoders.from_files(DINO_FILE, vae_file, dino=DINO, vae=VAE)


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
    norm = nn.BatchNorm2d(12, eps=VAE.batch_norm_eps, affine=False).eval()
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
    vae_file: Path,
    picture: NDArray[np.uint8],
    expected: Arrays,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoders = PictureEncoders.from_files(DINO_FILE, vae_file, dino=DINO, vae=VAE, dtype=dtype)
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
    vae_file: Path, encoders: PictureEncoders, picture: NDArray[np.uint8]
) -> None:
    narrow = PictureEncoders.from_files(
        DINO_FILE, vae_file, dino=DINO, vae=VAE, dtype=torch.bfloat16
    )
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


def test_an_encoder_without_a_decoder_in_its_file_is_the_same(
    vae_file: Path, tmp_path: Path, encoders: PictureEncoders, picture: NDArray[np.uint8]
) -> None:
    save_file(encoders.vae.state_dict(), tmp_path / "half")
    half = PictureEncoders.from_files(DINO_FILE, tmp_path / "half", dino=DINO, vae=VAE)
    assert torch.equal(half(picture, seeded()).vae, encoders(picture, seeded()).vae)


def test_dino_may_have_the_librarys_own_keys(
    vae_file: Path, tmp_path: Path, encoders: PictureEncoders, picture: NDArray[np.uint8]
) -> None:
    save_file(encoders.dino.state_dict(), tmp_path / "new")
    new = PictureEncoders.from_files(tmp_path / "new", vae_file, dino=DINO, vae=VAE)
    assert torch.equal(new(picture, seeded()).dino, encoders(picture, seeded()).dino)


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
        network = build_dino(DinoConfig()) if "dino" in name else build_vae(VaeConfig())
    keys = match_keys(Path(name), manifest, network)
    assert len(manifest) == tensors
    assert len(set(keys.values())) == len(keys) == tensors - left_out
    assert all(
        key.startswith(("decoder.", "post_quant_conv.")) for key in manifest.keys() - keys.values()
    )
    assert sum(value.numel() for value in network.state_dict().values()) == values


def test_the_default_configs_are_the_public_ones() -> None:
    public = json.loads((GOLDEN / "config.json").read_text())
    assert asdict(DinoConfig()) == public["dinov3"]
    vae = asdict(VaeConfig())
    assert vae.pop("batch_norm_eps") == public["vae_batch_norm_eps"]
    assert {name: list(v) if isinstance(v, tuple) else v for name, v in vae.items()} == {
        name: public["vae"][name] for name in vae
    }


def _without(key: str) -> Callable[[State], None]:
    return lambda state: state.__delitem__(key)


def _with(key: str, value: Tensor) -> Callable[[State], None]:
    return lambda state: state.__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _without("layer.1.norm1.weight"),
            r"1 of its tensors .*model\.layer\.1\.norm1\.weight is missing, expected \(24,\)",
        ),
        (_with("head.weight", torch.zeros(2, 3)), r"head\.weight is surplus, found \(2, 3\)"),
        (
            _with("layer.0.attention.q_proj.weight", torch.zeros(24, 23)),
            r"layer\.0\.attention\.q_proj\.weight has shape \(24, 23\), expected \(24, 24\)",
        ),
        (
            _with("norm.weight", torch.zeros(24, dtype=torch.float8_e4m3fn)),
            r"norm\.weight holds F8_E4M3, expected one of F64, F32, F16, BF16",
        ),
    ],
    ids=["missing", "surplus", "misshapen", "eight bits"],
)
def test_a_file_that_does_not_fit_is_refused(
    change: Callable[[State], None], message: str, vae_file: Path, tmp_path: Path
) -> None:
    state = load_file(DINO_FILE)
    change(state)
    file = tmp_path / "dino.safetensors"
    save_file(state, file)
    with pytest.raises(CheckpointError, match=message) as caught:
        PictureEncoders.from_files(file, vae_file, dino=DINO, vae=VAE)
    assert str(file) in caught.value.problem
    assert "DINOv3ViTModel" in caught.value.problem


def test_another_size_of_the_model_is_refused_with_a_few_of_many_keys(vae_file: Path) -> None:
    with pytest.raises(CheckpointError, match=r"\d\d of its tensors differ.*; \.\.\.") as caught:
        PictureEncoders.from_files(DINO_FILE, vae_file, vae=VAE)
    assert len(caught.value.problem) < 600


@pytest.mark.parametrize("content", [None, b"", b"\x08\0\0\0\0\0\0\0{", b"<html>not found</html>"])
def test_what_is_no_safetensors_file_is_refused(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "vae.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"vae\.safetensors cannot be read as safetensors"):
        PictureEncoders.from_files(DINO_FILE, file, dino=DINO, vae=VAE)


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


def test_encoders_whose_tokens_differ_in_size_are_refused(vae_file: Path) -> None:
    with pytest.raises(ValueError, match="have 8 pixels per side, expected 16"):
        PictureEncoders(
            build_dino(DinoConfig(**(asdict(DINO) | {"patch_size": 8}))), build_vae(VAE)
        )


@pytest.mark.cuda
def test_on_a_gpu_a_seed_gives_the_same_features(
    vae_file: Path, encoders: PictureEncoders, picture: NDArray[np.uint8]
) -> None:
    on_gpu = PictureEncoders.from_files(DINO_FILE, vae_file, dino=DINO, vae=VAE, device="cuda")
    assert on_gpu.dino.dtype == on_gpu.vae.dtype == torch.bfloat16
    for found, wide in zip(on_gpu(picture, seeded()), encoders(picture, seeded()), strict=True):
        assert found.is_cuda
        assert (found.cpu() - wide).norm() <= 0.03 * wide.norm()
