"""The view denoiser as guidance: on random weights, and as it is shipped."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from generation.lift.dreamgaussian import Dream, KnownView
from generation.lift.dreamgaussian.denoiser import (
    WEIGHTS_NAME,
    DenoiserConfig,
    DenoiserNetwork,
    Placement,
    ViewDenoiser,
    add_noise,
    questions_of,
    write,
)
from generation.lift.dreamgaussian.guidance import fov_of, scale_of
from generation.scoring.validity import check
from generation.weights.store import EMBEDDED
from protocol.errors import SetupError
from tests.generation.lift.dreamgaussian.test_dream import CPU, disc

SMALL = DenoiserConfig(size=16, widths=(4, 8, 8), code=8, heads=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("denoiser")
    write(DenoiserNetwork(SMALL), folder)
    return folder


def loaded(folder: Path, scale: float = 1.0) -> ViewDenoiser:
    return ViewDenoiser.from_pretrained(folder, device=CPU, dtype=torch.float32, scale=scale)


def gradient(
    guidance: ViewDenoiser, rgba: NDArray[np.uint8], azimuth: float = 1.0, seed: int = 1
) -> Tensor:
    pictures = torch.full((2, 4, guidance.size, guidance.size), 0.6, requires_grad=True)
    loss = guidance.loss(
        guidance.begin(rgba),
        pictures,
        torch.tensor([azimuth, 2.0]),
        torch.tensor([0.2, 0.1]),
        0.5,
        torch.Generator().manual_seed(seed),
    )
    torch.autograd.backward([loss])
    assert pictures.grad is not None
    return pictures.grad


def test_the_gradient_leads_away_from_the_denoised_view(folder: Path) -> None:
    guidance, pictures = loaded(folder), torch.full((2, 4, 16, 16), 0.6)
    angles = (torch.tensor([1.0, 2.0]), torch.tensor([0.2, 0.1]))
    generator = torch.Generator().manual_seed(1)
    wanted = guidance.denoise(guidance.begin(disc()), pictures, *angles, 0.5, generator)
    torch.testing.assert_close(gradient(guidance, disc()), pictures - wanted)


def test_the_gradient_depends_on_picture_camera_and_seed(folder: Path) -> None:
    guidance = loaded(folder)
    first = gradient(guidance, disc())
    assert torch.equal(gradient(guidance, disc()), first)
    assert not torch.equal(gradient(guidance, disc((40, 40, 200))), first)
    assert not torch.equal(gradient(guidance, disc(), azimuth=-1.0)[0], first[0])
    assert torch.equal(gradient(guidance, disc(), azimuth=-1.0)[1], first[1])
    assert not torch.equal(gradient(guidance, disc(), seed=2), first)


def test_guidance_goes_beyond_what_the_picture_alone_changes(folder: Path) -> None:
    found = {scale: gradient(loaded(folder, scale), disc()) for scale in (0.0, 1.0, 2.0)}
    inside = ((0.61 - found[2.0]).abs() < 0.39) & (found[0.0].abs() < 0.39)
    expected = 2 * found[1.0] - found[0.0]
    torch.testing.assert_close(found[2.0][inside], expected[inside], atol=1e-5, rtol=1e-4)
    assert not torch.equal(found[0.0], found[1.0])


def test_weights_are_written_in_half_precision_and_loaded_as_asked(folder: Path) -> None:
    assert {x.dtype for x in load_file(folder / WEIGHTS_NAME).values()} == {torch.float16}
    guidance = loaded(folder)
    assert guidance.size == SMALL.size
    assert {x.dtype for x in guidance.network.parameters()} == {torch.float32}
    assert not any(x.requires_grad for x in guidance.network.parameters())


@pytest.mark.parametrize("part", ["config.json", WEIGHTS_NAME])
def test_a_missing_or_damaged_file_is_a_setup_error(
    folder: Path, tmp_path: Path, part: str
) -> None:
    for file in folder.iterdir():
        if file.name != part:
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(SetupError, match=r"the view denoiser in .* cannot be loaded"):
        loaded(tmp_path)
    (tmp_path / part).write_bytes(b"{}")
    with pytest.raises(SetupError, match="cannot be loaded"):
        loaded(tmp_path)


def test_weights_of_another_shape_are_a_setup_error(folder: Path, tmp_path: Path) -> None:
    write(DenoiserNetwork(SMALL.model_copy(update={"code": 16})), tmp_path)
    (tmp_path / WEIGHTS_NAME).write_bytes((folder / WEIGHTS_NAME).read_bytes())
    with pytest.raises(SetupError, match="size mismatch"):
        loaded(tmp_path)


def test_noise_replaces_the_view() -> None:
    view, noise = torch.full((2, 4, 8, 8), 0.75), torch.full((2, 4, 8, 8), -3.0)
    mixed = add_noise(view, noise, torch.tensor([0.0, 1.0]))
    assert torch.equal(mixed[0], torch.full_like(view[0], 0.5))
    assert torch.equal(mixed[1], noise[1])


def test_a_whole_turn_asks_the_same() -> None:
    first, second = (
        questions_of(torch.tensor([angle]), torch.tensor([0.1]), torch.tensor([0.5]))
        for angle in (0.3, 0.3 + 2 * math.pi)
    )
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)


def test_cameras_stand_as_those_of_a_known_view_with_their_field_of_view() -> None:
    placement = Placement()
    known = KnownView.framed(disc(), elevation=placement.elevation, fov=placement.fov)
    assert known.distance == pytest.approx(placement.distance)


def test_known_views_are_taken_from_where_the_network_says(folder: Path) -> None:
    guidance = loaded(folder)
    seen, placement = guidance.begin(disc()), SMALL.placement
    for said, expected in ((-0.5, 16.0), (0.0, 20.0), (3.0, 28.0)):
        placed = seen._replace(elevation=torch.tensor([said]))
        assert guidance.elevation(placed, 0.0) == pytest.approx(expected)
    assert (placement.elevation, placement.spread) == (20.0, 8.0)
    known = KnownView(disc(), elevation=5.0)
    dream = Dream(known, guidance, steps=1, sizes=(16, 16, 16), count=50, seed=0, device=CPU)
    assert dream._known.elevation == guidance.elevation(seen, 5.0) != 5.0


def test_an_object_is_dreamt_with_it(folder: Path) -> None:
    dream = Dream(
        KnownView(disc()),
        loaded(folder),
        steps=3,
        sizes=(16, 16, 16),
        count=300,
        seed=0,
        device=CPU,
        most=7_500,
    )
    dream.run(3)
    assert check(dream.result().to_cloud()).passed


def test_the_shipped_one_is_small_and_knows_the_presets_camera() -> None:
    from generation.presets import preset

    shipped = EMBEDDED / "dreamgaussian"
    assert sum(file.stat().st_size for file in shipped.iterdir()) <= 2_000_000
    guidance, own = loaded(shipped), preset("embedded").dreamgaussian
    assert fov_of(own) == guidance.config.placement.fov
    assert own.elevation == guidance.config.placement.elevation


def test_a_preset_for_gpus_takes_its_camera_and_scale_with_the_setting_of_the_guidance() -> None:
    from generation.presets import preset

    own = preset("gpu24").dreamgaussian
    assert (fov_of(own), scale_of(own)) == (KnownView.fov, 5.0)
    changed = own.model_copy(update={"guidance": "denoiser"})
    assert fov_of(changed) == fov_of(preset("embedded").dreamgaussian)
    assert scale_of(changed) == scale_of(preset("embedded").dreamgaussian) == 1.0
    given = changed.model_copy(update={"fov": 33.0, "scale": 2.0})
    assert (fov_of(given), scale_of(given)) == (33.0, 2.0)


@pytest.mark.cuda
def test_it_says_the_same_on_cuda_and_a_dream_there_is_valid(folder: Path) -> None:
    cuda = torch.device("cuda")
    other = ViewDenoiser.from_pretrained(folder, device=cuda, dtype=torch.float32, scale=1.0)
    found = []
    for guidance, device in ((loaded(folder), CPU), (other, cuda)):
        pictures, generator = torch.full((1, 4, 16, 16), 0.6, device=device), torch.Generator()
        angles = (torch.tensor([1.0]), torch.tensor([0.2]))
        seen = guidance.begin(disc())
        found.append(guidance.denoise(seen, pictures, *angles, 0.5, generator.manual_seed(1)))
    torch.testing.assert_close(found[1].cpu(), found[0], atol=1e-3, rtol=1e-3)
    half = ViewDenoiser.from_pretrained(folder, device=cuda, dtype=torch.float16, scale=2.0)
    given: dict[str, Any] = {"sizes": (16, 16, 16), "seed": 0, "device": cuda, "most": 7_500}
    dream = Dream(KnownView(disc()), half, steps=3, count=300, **given)
    dream.run(3)
    assert check(dream.result().to_cloud()).passed
