"""The plain recipe: what one gets by calling the networks as their authors show, kept resident.

FLUX eager, rembg on the CPU, TripoSR in float32 with chunks of 8,192 points, marching cubes on the
CPU, round Gaussians on the vertices, a PLY file.
"""

import math
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from generation.lift.triposr import SceneCode, TripoSR
from generation.lift.triposr.mesh import coloured_mesh, marching_cubes
from generation.lift.triposr.splats import TO_SUBNET
from generation.loading import LoadedStages
from generation.packing import LARGEST_SIDE
from generation.scoring.validity import check
from generation.settings import GenerationSettings, ScoringSettings
from generation.stage import Asset, StageFunction, StepContext
from protocol import ply
from protocol.errors import SetupError
from protocol.gaussians import SH_C0, GaussianCloud
from scripts.benchmarks.networks import Networks, fast_stages

if TYPE_CHECKING:
    import trimesh

CHUNK = 8192
_FINER = 2  # than the first search of the fast recipe: 256 points a side in the GPU presets


def plain_settings(settings: GenerationSettings) -> GenerationSettings:
    """Returns a preset with nothing made fast or small; networks and device stay.

    Raises:
        SetupError: The preset's back end is not triposr, of which the plain recipe is.
    """
    if settings.lift.backend != "triposr":
        raise SetupError(
            f"the plain recipe lifts with triposr, and preset {settings.name} with "
            f"{settings.lift.backend}",
            fix="--recipe fast, or a preset that lifts with triposr",
        )
    cores = len(os.sched_getaffinity(0))
    return settings.model_copy(
        update={
            "accelerate": False,
            "rungs": (),
            "scoring": ScoringSettings(),
            "text_to_image": settings.text_to_image.model_copy(update={"eight_bit": False}),
            "cutout": settings.cutout.model_copy(
                update={
                    "runtime": "onnxruntime",
                    "providers": ("CPUExecutionProvider",),
                    "threads": cores,
                }
            ),
            "triposr": settings.triposr.model_copy(
                update={"dtype": "float32", "chunk_size": CHUNK}
            ),
        }
    )


def plain_stages(settings: GenerationSettings, networks: Networks) -> LoadedStages:
    """Puts the plain recipe together.

    Args:
        settings: From `plain_settings`.
        networks: Loaded or built with them.
    """
    triposr = networks.triposr

    def splats(code: SceneCode, context: StepContext) -> GaussianCloud:
        mesh = point_by_point_mesh(
            triposr, code, _FINER * settings.splats.resolution, settings.splats.threshold
        )
        scale = LARGEST_SIDE / float(mesh.extents.max())
        return round_gaussians(mesh, context.rung.gaussians, scale)

    def encode(cloud: GaussianCloud, context: StepContext) -> Asset:
        return Asset(cloud, ply.encode(cloud), check(cloud))

    fast = fast_stages(settings, networks)
    plain: dict[str, StageFunction] = {"splats": splats, "encode": encode}
    return replace(fast, functions={**fast.functions, **plain})


@torch.no_grad()
def point_by_point_mesh(
    model: TripoSR, scene_code: Tensor, resolution: int, threshold: float
) -> "trimesh.Trimesh":
    """Marching cubes on the CPU over a density that is asked for at every point of the grid.

    Args:
        model: Its `query_chunk` is the number of points asked for at a time.
        scene_code: (3, C, H, W).
        resolution: Grid points per side.
        threshold: Density of the surface.
    """
    line = torch.linspace(-model.radius, model.radius, resolution, device=scene_code.device)
    points = torch.cartesian_prod(line, line, line)
    density = model.query_density(points, scene_code).view((resolution,) * 3)
    vertices, faces = marching_cubes(density, threshold, model.radius)
    _, rgb = model.query(torch.from_numpy(vertices).to(scene_code.device), scene_code)
    return coloured_mesh(vertices, faces, rgb)


def round_gaussians(mesh: "trimesh.Trimesh", count: int, scale: float) -> GaussianCloud:
    """Round Gaussians on vertices of a mesh, randomly turned, as a first attempt would do it.

    Args:
        mesh: In TripoSR's frame, with vertex colours.
        count: Most Gaussians; if there are more vertices, a random choice of them.
        scale: From the mesh's size to the cloud's.
    """
    rng = np.random.default_rng(0)
    vertices = np.asarray(mesh.vertices, dtype=np.float32)
    kept = rng.permutation(len(vertices))[:count]
    colours = np.asarray(mesh.visual.vertex_colors[kept, :3], dtype=np.float32) / 255
    spacing = math.sqrt(float(mesh.area) / len(kept)) * scale
    rotations = rng.normal(size=(len(kept), 4)).astype(np.float32)
    return GaussianCloud(
        np.asarray(vertices[kept][:, TO_SUBNET] * scale, dtype=np.float32),
        np.full((len(kept), 3), math.log(0.85 * spacing), dtype=np.float32),
        rotations / np.linalg.norm(rotations, axis=-1, keepdims=True),
        np.full(len(kept), 5.5, dtype=np.float32),
        np.asarray((colours - 0.5) / SH_C0, dtype=np.float32),
    )
