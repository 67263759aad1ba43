"""Times every network alone, in each way of running it: `python -m scripts.benchmark parts`.

The networks have full size, random weights and, where a way does not say otherwise, the settings of
preset gpu80. A way that fails becomes a row that says so, and the rest goes on; the file is written
after every row, so a run that is interrupted keeps its rows.
"""

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from generation.acceleration.compiling import Compiled
from generation.acceleration.graphs import Captured
from generation.acceleration.streams import to_host
from generation.lift.triposr import SceneCode, TripoSR
from generation.lift.triposr.splats import extract_cloud
from generation.loading import require_device
from generation.pictures.drawing import places
from generation.pictures.flux1 import Flux1
from generation.pictures.onnx_network import OnnxNetwork
from generation.presets import preset
from generation.settings import GenerationSettings
from protocol import spz
from protocol.errors import SetupError
from scripts.benchmarks import full_size
from scripts.benchmarks.figures import write_figures
from scripts.benchmarks.kept_warnings import kept_warnings
from scripts.benchmarks.timing import median_ms, wait
from scripts.benchmarks.whole_loop import denoise_and_decode

Action = Callable[[], object]
Row = dict[str, Any]
Way = frozenset[str]


@dataclass(frozen=True)
class Bench:
    """What all parts share.

    Attributes:
        settings: The preset, on the device that is measured.
        sizes: Shapes of the networks.
        folder: For files of networks.
        backend: What `torch.compile` compiles with.
    """

    settings: GenerationSettings
    sizes: full_size.Sizes
    folder: Path
    backend: str

    @property
    def device(self) -> torch.device:
        """Where the networks run."""
        return torch.device(self.settings.device)

    @property
    def dtype(self) -> torch.dtype:
        """Number format of FLUX and its encoders."""
        dtype: torch.dtype = getattr(torch, self.settings.text_to_image.dtype)
        return dtype

    @property
    def words(self) -> int:
        """Tokens of a prompt of FLUX.1."""
        return self.settings.text_to_image.max_sequence_length or Flux1.SEQUENCE_LENGTH

    def random(self, *shape: int) -> Tensor:
        """Normally distributed numbers."""
        generator = torch.Generator(self.device).manual_seed(0)
        return torch.randn(shape, device=self.device, dtype=self.dtype, generator=generator)

    def tokens(self, count: int) -> Tensor:
        """Ids (1, count) that every vocabulary has."""
        return torch.arange(count, device=self.device)[None] % 256

    def action(
        self,
        function: Callable[..., Any],
        way: Way,
        modules: Iterable[nn.Module],
        **inputs: Tensor,
    ) -> Callable[..., Any]:
        """The function of these inputs, compiled and recorded if the way says so."""
        if "compiled" in way:
            function = Compiled("the part", function, modules, backend=self.backend)
        if "captured" in way:
            function = Captured("the part", function)
        return partial(function, **inputs)


def run(
    *,
    device: str,
    only: Sequence[str] | None = None,
    out: Path | None = None,
    sizes: full_size.Sizes = full_size.FULL,
    settings: GenerationSettings | None = None,
    backend: str = "inductor",
) -> list[Row]:
    """Prints a line for every part and way as soon as it is measured.

    Args:
        device: Where the networks run, in torch's words.
        only: Names in `PARTS`; all when None.
        out: JSON file for the rows, if any.
        sizes: Shapes of the networks.
        settings: Their settings; those of preset gpu80 when None.
        backend: What `torch.compile` compiles with.

    Returns:
        Rows with `part` and `way`, and either `median_ms`, `first_s` (the first call, which
        compiles and records) and `warnings` of the log, or `failed`.

    Raises:
        SetupError: There is no such part or device.
    """
    unknown = [name for name in only or () if name not in PARTS]
    if unknown:
        raise SetupError(f"there is no part {unknown[0]!r}", fix=f"--only {', '.join(PARTS)}")
    settings = (settings or preset("gpu80")).model_copy(update={"device": device})
    require_device(settings)
    rows: list[Row] = []
    print(f"{'part':<14}{'way':<36}{'median ms':>10}{'first s':>10}")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        bench = Bench(settings, sizes, Path(folder), backend)
        for part in only or PARTS:
            prepare, ways = PARTS[part]
            for way in ways:
                row = {"part": part, "way": way} | _measure(bench, prepare, way)
                rows.append(row)
                print(_line(row), flush=True)
                write_figures(out, rows)
    return rows


def _measure(bench: Bench, prepare: Callable[[Bench, Way], Action], way: str) -> Row:
    warnings: list[str] = []
    try:
        with kept_warnings(warnings):
            return _time(bench, prepare, way) | {"warnings": warnings}
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return {"failed": f"{type(error).__name__}: {lines[0]}", "warnings": warnings}
    finally:
        # The next way builds its network anew, and shall find nothing of this one.
        torch._dynamo.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _time(bench: Bench, prepare: Callable[[Bench, Way], Action], way: str) -> Row:
    device = bench.settings.device
    action = prepare(bench, frozenset(way.split(", ")))
    wait(device)
    begin = time.perf_counter()
    action()
    wait(device)
    first_s = time.perf_counter() - begin
    return {"median_ms": median_ms(action, device=device), "first_s": first_s}


def _line(row: Row) -> str:
    head = f"{row['part']:<14}{row['way']:<36}"
    if "failed" in row:
        return f"{head}failed: {row['failed']}"
    notes = "".join(f"  {warning}" for warning in row["warnings"])
    return f"{head}{row['median_ms']:>10.2f}{row['first_s']:>10.1f}{notes}"


def _t5(bench: Bench, way: Way) -> Action:
    network = full_size.t5(bench.device, bench.dtype, bench.sizes, eight_bit="8 bits" in way)
    ids = bench.tokens(bench.words)
    return bench.action(lambda ids: network(ids)[0], way, network.encoder.block, ids=ids)


def _clip(bench: Bench, way: Way) -> Action:
    network = full_size.clip(bench.device, bench.dtype, bench.sizes)
    ids = bench.tokens(bench.sizes.clip["max_position_embeddings"])
    return bench.action(lambda ids: network(ids).pooler_output, way, (), ids=ids)


def _flux_step(bench: Bench, way: Way) -> Action:
    network = full_size.transformer(
        bench.device, bench.dtype, bench.sizes, eight_bit="8 bits" in way
    )
    if "fused" in way:
        network.fuse_qkv_projections()
    side = bench.settings.text_to_image.size // 16
    config = network.config
    return bench.action(
        lambda **inputs: network(**inputs, return_dict=False)[0],
        way,
        (*network.transformer_blocks, *network.single_transformer_blocks),
        hidden_states=bench.random(1, side**2, config.in_channels),
        encoder_hidden_states=bench.random(1, bench.words, config.joint_attention_dim),
        pooled_projections=bench.random(1, config.pooled_projection_dim),
        timestep=torch.ones(1, device=bench.device, dtype=bench.dtype),
        txt_ids=torch.zeros(bench.words, 3, device=bench.device, dtype=bench.dtype),
        img_ids=places(side, bench.device).to(bench.dtype),
    )


def _vae(bench: Bench, way: Way) -> Action:
    network = full_size.vae(bench.device, bench.dtype, bench.sizes)
    if "channels last" in way:
        network.to(memory_format=torch.channels_last)
    scale = 2 ** (len(bench.sizes.vae["block_out_channels"]) - 1)
    side = bench.settings.text_to_image.size // scale
    latents = bench.random(1, bench.sizes.vae["latent_channels"], side, side)
    return bench.action(
        lambda latents: network.decode(latents, return_dict=False)[0],
        way,
        (network.decoder,),
        latents=latents,
    )


def _drawn_picture(bench: Bench, way: Way) -> Action:
    """From a remembered prompt to pixels on the host."""
    eight_bit = {"eight_bit": "8 bits" in way}
    settings = bench.settings.text_to_image.model_copy(update=eight_bit)
    pipeline = full_size.flux_pipeline(settings, bench.device, bench.sizes)
    in_one = "whole loop" in way
    accelerate = "captured" in way and not in_one
    flux = Flux1(pipeline, settings, accelerate=accelerate, backend=bench.backend)
    if not in_one:
        return partial(flux, "a picture")
    noise = flux.begin("a picture", (None,), steps=settings.steps, size=settings.size)
    network = pipeline.transformer
    draw = bench.action(
        partial(denoise_and_decode, pipeline, noise.schedule.sigmas),
        way,
        (*network.transformer_blocks, *network.single_transformer_blocks, pipeline.vae.decoder),
    )

    def draw_picture() -> Image.Image:
        # With the same work on the host as a picture in steps.
        start = flux.begin("a picture", (None,), steps=settings.steps, size=settings.size)
        return Image.fromarray(to_host(draw(start.latents, *start.embedding)))

    return draw_picture


def _triposr(bench: Bench, way: Way) -> Action:
    model = full_size.triposr(bench.settings, bench.device, bench.sizes)
    side = bench.sizes.triposr.image_size
    images = bench.random(1, 3, side, side).float().sigmoid()
    return bench.action(lambda images: model(images), way, model.layers, images=images)


def _scene(bench: Bench) -> tuple[TripoSR, SceneCode]:
    model = full_size.triposr(bench.settings, bench.device, bench.sizes)
    return model, model.scene_codes(_picture(bench.sizes.triposr.image_size))


def _splats(bench: Bench, way: Way) -> Action:
    return partial(extract_cloud, *_scene(bench), bench.settings.splats)


def _encode(bench: Bench, way: Way) -> Action:
    cloud = extract_cloud(*_scene(bench), bench.settings.splats)
    return partial(spz.encode, cloud, level=bench.settings.spz_level)


def _picture(side: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _saliency(bench: Bench, way: Way) -> Action:
    """The network of the background removal without what surrounds it."""
    network: Any = OnnxNetwork(full_size.background_file(bench.folder, bench.sizes)).eval()
    dtype = torch.bfloat16 if "bfloat16" in way else torch.float32
    network.to(bench.device, dtype, memory_format=torch.channels_last)
    side = network.input_shape[-1]
    image = bench.random(1, 3, side, side).to(dtype, memory_format=torch.channels_last)
    return bench.action(lambda image: network(image), way, (network,), image=image)


def _background(bench: Bench, way: Way) -> Action:
    settings = bench.settings.cutout.model_copy(
        update={
            "runtime": "torch" if "torch" in way else "onnxruntime",
            "threads": len(os.sched_getaffinity(0)),
        }
    )
    remover = full_size.background(settings, bench.device, bench.folder, bench.sizes)
    return partial(remover, _picture(bench.settings.text_to_image.size))


_EAGER, _CAPTURED, _COMPILED, _BOTH = "eager", "captured", "compiled", "compiled, captured"

PARTS: dict[str, tuple[Callable[[Bench, Way], Action], tuple[str, ...]]] = {
    "t5": (_t5, (_EAGER, _CAPTURED, _BOTH, f"8 bits, {_CAPTURED}", f"8 bits, {_BOTH}")),
    "clip": (_clip, (_EAGER, _CAPTURED)),
    "flux-step": (
        _flux_step,
        (_EAGER, _CAPTURED, _COMPILED, _BOTH, f"fused, {_BOTH}", f"8 bits, {_BOTH}"),
    ),
    "vae": (_vae, (_EAGER, _CAPTURED, _BOTH, f"channels last, {_BOTH}")),
    "picture": (
        _drawn_picture,
        (
            _EAGER,
            _BOTH,
            f"whole loop, {_BOTH}",
            f"8 bits, {_BOTH}",
            f"8 bits, whole loop, {_BOTH}",
        ),
    ),
    "saliency": (_saliency, (_EAGER, _CAPTURED, f"bfloat16, {_CAPTURED}")),
    "background": (_background, ("onnxruntime", "torch")),
    "triposr": (_triposr, (_EAGER, _CAPTURED, _COMPILED, _BOTH)),
    "splats": (_splats, (_EAGER,)),
    "encode": (_encode, ("spz",)),
}
"""Parts by name: how to prepare one, and in which ways it is run."""
