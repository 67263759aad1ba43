"""TripoSR as a back end: its stages `lift`, `splats` and `mesh`."""

from collections.abc import Mapping
from pathlib import Path

import torch

from generation.acceleration.compiling import Compiled
from generation.acceleration.graphs import Captured
from generation.acceleration.streams import wait_for_stream
from generation.lift.triposr import SceneCode, TripoSR
from generation.lift.triposr.fused import fused_decoder
from generation.lift.triposr.splats import GaussianExtractor
from generation.lift.triposr.triangles import extract_triangles
from generation.packing import Splats
from generation.settings import GenerationSettings
from generation.stage import Cutout, StageFunction, StepContext, TriangleMesh
from generation.weights.store import locate_models


def load(
    settings: GenerationSettings, models_dir: Path | None, device: torch.device
) -> Mapping[str, StageFunction]:
    """Loads the network and returns the functions of its stages.

    Args:
        settings: The preset.
        models_dir: The models folder; the default one when None.
        device: Where the network goes.

    Raises:
        SetupError: A file is missing or wrong.
    """
    # What meshes need takes a second to import, which would count as the first mesh's.
    import fast_simplification  # noqa: F401
    import skimage.measure  # noqa: F401

    return functions_of(settings, load_network(settings, models_dir, device))


def load_network(
    settings: GenerationSettings, models_dir: Path | None, device: torch.device
) -> TripoSR:
    """Loads the network alone; see `load`."""
    paths = locate_models(settings, models_dir, image_only=True)
    return TripoSR.from_pretrained(
        paths.lift,
        device=device,
        dtype=getattr(torch, settings.triposr.dtype),
        query_chunk=settings.triposr.chunk_size,
    )


def functions_of(
    settings: GenerationSettings, network: TripoSR, *, backend: str = "inductor"
) -> Mapping[str, StageFunction]:
    """Returns the functions of the stages, by name.

    Args:
        settings: The preset.
        network: On the preset's device. Accelerated in place, if the preset asks for it.
        backend: What `torch.compile` compiles it with.
    """
    if settings.accelerate:
        compiled = Compiled("TripoSR", network.forward, network.layers, backend=backend)
        network.forward = Captured("TripoSR", compiled)  # type: ignore[method-assign]
        if network.device.type == "cuda":
            network.fused = fused_decoder(network.decoder)
    extractor = GaussianExtractor(network, settings.splats, record=network.fused is not None)

    def lift(cutout: Cutout, context: StepContext) -> SceneCode:
        on_grey = cutout.on_grey if cutout.on_device is None else cutout.on_device
        code = network.scene_codes(on_grey)
        # Waits, so that the time and the errors of this stage are its own.
        wait_for_stream(code.device)
        return code

    def splats(code: SceneCode, context: StepContext) -> Splats:
        return extractor.splats(code, count=context.rung.gaussians, seed=context.task.seed)

    def mesh(code: SceneCode, context: StepContext) -> TriangleMesh:
        return extract_triangles(network, code, settings.splats, settings.mesh)

    return {"lift": lift, "splats": splats, "mesh": mesh}
