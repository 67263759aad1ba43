"""Rendering with gradients draws what the CPU back end draws, and its gradients are right."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from generation.rendering import orbit_camera, render_layers
from generation.rendering.cameras import Camera
from generation.rendering.device_cloud import DeviceCloud
from generation.rendering.differentiable import rasterize
from protocol.gaussians import Float32Array, GaussianCloud
from scripts.benchmarks.rendering import sphere

CAMERAS = [orbit_camera(a, 20.0, radius=2.4, fov=45.0, size=40) for a in (0.0, 130.0)]


def matrices(cameras: list[Camera], device: str = "cpu") -> tuple[Tensor, Tensor]:
    views = torch.tensor(np.stack([c.world_to_camera for c in cameras]), device=device)
    intrinsics = torch.tensor(np.stack([c.intrinsics for c in cameras]), device=device)
    return views.float(), intrinsics.float()


def fog(count: int) -> GaussianCloud:
    """Half-transparent ellipsoids of all shapes, some behind the cameras."""
    random = np.random.default_rng(3)

    def normal(columns: int, spread: float, mean: float = 0.0) -> Float32Array:
        return random.normal(mean, spread, (count, columns)).astype(np.float32)

    return GaussianCloud(
        positions=normal(3, 1.0),
        log_scales=normal(3, 0.8, mean=-2.5),
        rotations=normal(4, 1.0),
        opacity_logits=normal(1, 1.5)[:, 0],
        colors_dc=normal(3, 1.0),
    )


def draw(cloud: GaussianCloud, cameras: list[Camera], device: str = "cpu") -> tuple[Tensor, Tensor]:
    placed = DeviceCloud.of(cloud, torch.device(device))
    size = (cameras[0].width, cameras[0].height)
    colour, coverage, _ = rasterize(placed, *matrices(cameras, device), *size)
    return colour.cpu(), coverage.cpu()


@pytest.mark.parametrize("cloud", [sphere(1500), fog(400)], ids=["discs", "fog"])
def test_draws_what_the_cpu_back_end_draws(cloud: GaussianCloud) -> None:
    colour, coverage = draw(cloud, CAMERAS)
    expected_colour, expected_coverage = render_layers(cloud, CAMERAS, backend="cpu")
    assert expected_coverage.max() > 0.9
    assert colour.numpy() == pytest.approx(expected_colour, abs=2e-4)
    assert coverage.numpy() == pytest.approx(expected_coverage, abs=2e-4)


def test_gradients_are_those_of_finite_differences() -> None:
    """Of every argument that has one, the cameras among them."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    camera = orbit_camera(30.0, 10.0, radius=2.0, fov=60.0, size=6)
    views, intrinsics = (matrix.double() for matrix in matrices([camera]))
    arguments = (
        0.4 * normal(5, 3),
        0.1 + 0.3 * normal(5, 3).abs(),
        normal(5, 4),
        normal(5).sigmoid(),
        normal(5, 3),
        views,
    )
    for argument in arguments:
        argument.requires_grad_()

    def picture(*values: Tensor) -> Tensor:
        backgrounds = torch.ones(1, 3, dtype=torch.float64)
        cloud = DeviceCloud(*values[:5])
        colour, coverage, _ = rasterize(cloud, values[5], intrinsics, 6, 6, backgrounds)
        return torch.cat([colour, coverage[..., None]], dim=-1)

    assert picture(*arguments)[..., 3].max() > 0.5
    assert torch.autograd.gradcheck(picture, arguments, eps=1e-7, atol=1e-5)


def test_gradients_are_finite_behind_the_camera_and_where_nothing_is_drawn() -> None:
    placed = DeviceCloud.of(fog(300), torch.device("cpu"))
    tensors = (placed.positions, placed.scales, placed.rotations, placed.opacities, placed.rgb)
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    views, intrinsics = matrices(CAMERAS)
    views = views.clone()
    views[:, 2, 3] = 0.0  # In the middle of the cloud.
    colour, coverage, info = rasterize(DeviceCloud(*leaves), views, intrinsics, 40, 40)
    info["means2d"].retain_grad()
    torch.autograd.backward([colour.sum() + coverage.sum()])
    for leaf in (*leaves, info["means2d"]):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
    drawn = (info["radii"] > 0).all(-1)
    assert 0 < drawn.sum() < drawn.numel()
    assert (info["means2d"].grad[~drawn] == 0).all()


def test_a_camera_that_looks_away_sees_the_background() -> None:
    views, intrinsics = matrices(CAMERAS)
    views = views.clone()
    views[:, 2, 3] = -50.0
    placed = DeviceCloud.of(sphere(50), torch.device("cpu"))
    backgrounds = torch.tensor([[1.0, 0.5, 0.0]] * 2)
    colour, coverage, _ = rasterize(placed, views, intrinsics, 40, 40, backgrounds)
    assert (coverage == 0).all()
    assert (colour == backgrounds[:, None, None]).all()


@pytest.mark.cuda
def test_cuda_draws_and_differentiates_as_the_cpu_does() -> None:
    cloud = sphere(1500)
    pictures, gradients = [], []
    for device in ("cpu", "cuda"):
        placed = DeviceCloud.of(cloud, torch.device(device))
        means = placed.positions.clone().requires_grad_()
        views, intrinsics = matrices(CAMERAS, device)
        views.requires_grad_()
        colour, _, _ = rasterize(replace(placed, positions=means), views, intrinsics, 40, 40)
        torch.autograd.backward([colour.square().sum()])
        assert means.grad is not None
        assert views.grad is not None
        pictures.append(colour.detach().cpu())
        gradients.append((means.grad.cpu(), views.grad[:, :3].cpu()))
    assert pictures[1].numpy() == pytest.approx(pictures[0].numpy(), abs=2e-3)
    for on_cpu, on_cuda in zip(*gradients, strict=True):
        assert (on_cuda - on_cpu).norm() < 0.02 * on_cpu.norm()
