"""Times TripoSplat at full size: `python -m scripts.benchmark triposplat --device cuda`.

The weights are random, which does not change the speed; every picture gives one solid body. Beside
every part are its variants: attention by each kernel, compiled or not, recorded
or not, layers of 8 bits, guidance as a batch of two full passes. TripoSR is timed in the same run.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from generation.acceleration.graphs import GraphPool
from generation.acceleration.streams import wait_for_stream
from generation.lift.triposplat import Sampler, TripoSplat
from generation.lift.triposplat.accelerated import (
    accelerate_decoder,
    accelerate_encoders,
    accelerate_flow,
    attend_fast,
    hold_in_eight_bits,
)
from generation.lift.triposplat.attention import Attend, Repeated, attend
from generation.lift.triposplat.fast_attention import attend_by, cudnn, flash
from generation.lift.triposplat.features import PictureEncoders
from generation.lift.triposplat.octree import sample_points
from generation.lift.triposplat.prepare import prepare
from generation.lift.triposplat.splats import to_gaussians
from generation.lift.triposr.loading import functions_of
from generation.packing import GaussianTensors
from generation.plan import Rung
from generation.presets import preset
from generation.settings import GenerationSettings
from generation.stage import Cutout, StepContext
from protocol import spz
from protocol.tasks import TextTask
from scripts.benchmarks import full_size, parts, random_triposplat
from scripts.benchmarks.bench import BOTH, CAPTURED, COMPILED, EAGER, Action, Bench, Parts, Way

COUNTS = (262_144, 131_072, 65_536, 32_768)
RUNGS = ((20, 262_144), (10, 131_072), (6, 65_536))
"""Steps and Gaussians of the table at the end."""
NARROW = f"8 bits, {BOTH}"
ONE_BATCH = "batch of two full passes"
GUIDED = "guided step"

Row = parts.Row


def run(
    *,
    device: str,
    only: Sequence[str] | None = None,
    out: Path | None = None,
    sizes: full_size.Sizes = full_size.FULL,
    settings: GenerationSettings | None = None,
    backend: str = "inductor",
) -> list[Row]:
    """Prints a line per part and way, and at the end the time from a cut-out to a cloud.

    Args:
        device: Where the networks run, in torch's words.
        only: Names in `PARTS`; all when None.
        out: JSON file for the rows, if any.
        sizes: Shapes of the networks.
        settings: Their settings; those of preset gpu24-splat when None.
        backend: What `torch.compile` compiles with.

    Returns:
        See `parts.run`.

    Raises:
        SetupError: There is no such part or device, or a way has taken the device with it.
    """
    rows = parts.run(
        device=device,
        only=only,
        out=out,
        sizes=sizes,
        settings=settings or preset("gpu24-splat"),
        backend=backend,
        parts=PARTS,
        command="triposplat",
    )
    for line in totals(rows):
        print(line)
    return rows


def totals(rows: Sequence[Row]) -> list[str]:
    """Adds up the fastest way of every part: from a cut-out to the SPZ file."""
    found = {(r["part"], r["way"], r.get("case")): r for r in rows if "median_ms" in r}

    def ms(part: str, way: str, *cases: str) -> float:
        return sum(float(found[part, way, case]["median_ms"]) for case in cases)

    lines = []
    for way in (BOTH, NARROW):
        for steps, count in RUNGS:
            name = f"{count:,}"
            try:
                shares = {
                    "prepare": ms("features", EAGER, "prepare"),
                    "features": ms("features", BOTH, "DINOv3", "VAE"),
                    f"{steps} steps": ms("latent", way, f"{steps} steps"),
                    "decode": ms("decode", way, name),
                    "finish": ms("cloud", EAGER, f"{name} finished"),
                    "pack": ms("cloud", EAGER, f"{name} packed"),
                }
            except KeyError:  # The part was left out, or failed.
                continue
            text = ", ".join(f"{share} {value:.1f}" for share, value in shares.items())
            lines.append(f"{name} Gaussians, {way}: {sum(shares.values()):.0f} ms ({text})")
    if ("triposr", BOTH, "lift") in found and ("triposr", BOTH, "splats") in found:
        lines.append(f"TripoSR for comparison: {ms('triposr', BOTH, 'lift', 'splats'):.0f} ms")
    return lines


def _model(bench: Bench, way: Way) -> TripoSplat:
    dtype = getattr(torch, bench.settings.triposplat.dtype)
    model = random_triposplat.untrained(bench.sizes.triposplat, device=bench.device, dtype=dtype)
    if "8 bits" in way:
        hold_in_eight_bits(model)
    attend_fast(model)
    return model


def _encoders(bench: Bench) -> PictureEncoders:
    dtype = getattr(torch, bench.settings.triposplat.dtype)
    return random_triposplat.untrained_encoders(
        bench.sizes.triposplat_encoders, device=bench.device, dtype=dtype
    )


def _tokens(bench: Bench) -> int:
    """How many tokens a picture has."""
    dino = bench.sizes.triposplat_encoders.dinov3
    return 1 + dino.num_register_tokens + (bench.sizes.triposplat_side // dino.patch_size) ** 2


def _random_features(bench: Bench) -> tuple[Tensor, Tensor]:
    config, tokens = bench.sizes.triposplat.flow, _tokens(bench)
    dino, vae = config.condition_channels_dino, config.condition_channels_vae
    return bench.random(1, tokens, dino).float(), bench.random(1, tokens, vae).float()


def _attention(bench: Bench, way: Way) -> Mapping[str, Action]:
    config, (name,) = bench.sizes.triposplat.flow, way
    dtype = getattr(torch, bench.settings.triposplat.dtype)
    kernels: dict[str, Attend] = {"torch": attend, "cudnn": attend_by(cudnn)}
    kernel = (kernels | {"flash": attend_by(flash)})[name]

    def action(others: int, repeated: Repeated | None = None) -> Action:
        shape = (1, config.latent_tokens + others, config.heads, config.head_dim)
        query, key, value = (bench.random(*shape).to(dtype) for _ in range(3))
        return lambda: kernel(query, key, value, repeated)

    actions = {"with condition": action(_tokens(bench) + 1)}
    if name != "torch":
        repeated = Repeated(config.latent_tokens, _tokens(bench))
        actions["one token counts for all"] = action(2, repeated)
    return actions


def _flow(bench: Bench, way: Way) -> Mapping[str, Action]:
    flow = _model(bench, way).flow
    config, width, tokens = flow.config, flow.config.width, _tokens(bench)
    blocks = (*flow.noise_refiner, *flow.blocks)
    state: dict[str, Any] = {
        "latent": bench.random(1, config.latent_tokens, config.latent_channels).float(),
        "camera": bench.random(1, 1, config.camera_channels).float(),
        "time": torch.full((1,), 650.0, device=bench.device),
    }
    condition = bench.random(1, tokens, width).to(flow.dtype)
    empty = bench.random(1, 1, width).to(flow.dtype)
    guidance = torch.tensor(3.0, device=bench.device)
    both: dict[str, Any] = {"condition": condition, "empty": empty, "guidance": guidance}

    def batch_of_two(
        latent: Tensor, camera: Tensor, time: Tensor, condition: Tensor, guidance: Tensor
    ) -> Tensor:
        velocity = flow(latent.repeat(2, 1, 1), camera.repeat(2, 1, 1), time.repeat(2), condition)[
            0
        ]
        first, second = velocity.float().chunk(2)
        guided: Tensor = guidance * first - (guidance - 1) * second
        return guided

    def without(latent: Tensor, camera: Tensor, time: Tensor, empty: Tensor) -> Any:
        return flow(latent, camera, time, empty, copies=tokens)

    timed: dict[str, Action] = {
        GUIDED: bench.action(flow.velocities, way, blocks, **state, **both),
        "with condition": bench.action(flow.velocities, way, (), **state, condition=condition),
        "without condition": bench.action(without, way, (), **state, empty=empty),
    }
    if way & {"eager", "captured"} and "8 bits" not in way:
        full = torch.cat([condition, empty.expand_as(condition)])
        twice: dict[str, Any] = {"condition": full, "guidance": guidance}
        timed[ONE_BATCH] = bench.action(batch_of_two, way, (), **state, **twice)
    return timed


def _latent(bench: Bench, way: Way) -> Mapping[str, Action]:
    """From features to a latent: the condition's tokens and all guided steps."""
    flow = _model(bench, way).flow
    accelerate_flow(flow, GraphPool(), bench.backend)
    features = _random_features(bench)

    def sample(steps: int) -> None:
        sampler = Sampler(flow, *features, steps=steps)
        state = sampler.start(torch.Generator().manual_seed(0))
        while state.index < steps:
            state = sampler.step(state)
            wait_for_stream(bench.device)

    # The longest last: the first call of all records.
    return {f"{steps} steps": partial(sample, steps) for steps, _ in reversed(RUNGS)}


def _features(bench: Bench, way: Way) -> Mapping[str, Action]:
    flow, encoders = _model(bench, way).flow, _encoders(bench)
    if "eager" not in way:
        pool = GraphPool()
        accelerate_flow(flow, pool, bench.backend)
        accelerate_encoders(encoders, pool, bench.backend)
    side, vae = bench.sizes.triposplat_side, encoders.vae.config
    pixels = bench.random(1, 3, side, side).float().sigmoid()
    latents = side // 2 ** (len(vae.block_out_channels) - 1)
    noise = bench.random(1, vae.latent_channels, latents, latents).float()
    features = _random_features(bench)
    timed: dict[str, Action] = {
        "DINOv3": lambda: encoders.dino_tokens(pixels),
        "VAE": lambda: encoders.vae_tokens(pixels, noise),
        "condition": lambda: flow.condition(*features),
    }
    if "eager" in way:
        # On the host, with Pillow.
        timed["prepare"] = partial(prepare, cutout_picture(bench.size), canvas=side)
    return timed


def cutout_picture(side: int) -> NDArray[np.uint8]:
    """A disc of noise, (side, side, 4) uint8."""
    line = np.linspace(-1, 1, side)
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 4), dtype=np.uint8)
    picture[..., 3] = 255 * (np.hypot(line[:, None], line) < 0.85)
    return picture


def _latent_of(bench: Bench) -> Tensor:
    config = bench.sizes.triposplat.flow
    return bench.random(1, config.latent_tokens, config.latent_channels).float()


def _decode(bench: Bench, way: Way) -> Mapping[str, Action]:
    """Points drawn, and all of decoding, which draws them first."""
    decoder, latent = _model(bench, way).decoder, _latent_of(bench)
    per_point = bench.sizes.triposplat.gaussian.gaussians_per_point
    if "eager" not in way:
        accelerate_decoder(decoder, COUNTS[0] // per_point, GraphPool(), bench.backend)
    generator = torch.Generator()

    @torch.inference_mode()
    def points(count: int) -> None:
        generator.manual_seed(0)
        sample_points(
            decoder.octree,
            latent,
            count // per_point,
            lambda *shape: torch.rand(shape, generator=generator),
        )

    timed: dict[str, Action] = {}
    for count in COUNTS:
        timed[f"{count:,} points alone"] = partial(points, count)
        timed[f"{count:,}"] = partial(decoder.decode, latent, count, 0)
    return timed


def _cloud(bench: Bench, way: Way) -> Mapping[str, Action]:
    """What follows the networks: the finished cloud, and the SPZ file."""
    decoder, latent = _model(bench, way).decoder, _latent_of(bench)

    def pack(finished: GaussianTensors) -> bytes:
        return spz.compress(finished.to_splats().payload, level=bench.settings.spz_level)

    timed: dict[str, Action] = {}
    for count in COUNTS:
        made = decoder.decode(latent, count, 0)
        timed[f"{count:,} finished"] = partial(to_gaussians, made)
        timed[f"{count:,} packed"] = partial(pack, to_gaussians(made))
    return timed


def _triposr(bench: Bench, way: Way) -> Mapping[str, Action]:
    """TripoSR's own stages, as its presets run them."""
    model = full_size.triposr(bench.settings, bench.device, bench.sizes)
    settings = bench.settings.model_copy(update={"accelerate": True})
    stages = functions_of(settings, model, backend=bench.backend)
    side = bench.sizes.triposr.image_size
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    cutout = Cutout(picture, np.dstack([picture, picture[..., :1]]), picture)
    rung = Rung("full", 4, 512, settings.splats.max_gaussians, False, "triposr")
    context = StepContext(TextTask(id="benchmark", prompt="a cube", seed=0), rung)
    code = stages["lift"](cutout, context)

    def splats() -> object:
        made: Any = stages["splats"](code, context)
        return spz.compress(made.payload, level=settings.spz_level)

    return {"lift": partial(stages["lift"], cutout, context), "splats": splats}


PARTS: Parts = {
    "attention": (_attention, ("torch", "cudnn", "flash")),
    "flow": (_flow, (EAGER, CAPTURED, COMPILED, BOTH, NARROW)),
    "latent": (_latent, (BOTH, NARROW)),
    "features": (_features, (EAGER, BOTH)),
    "decode": (_decode, (EAGER, BOTH, NARROW)),
    "cloud": (_cloud, (EAGER,)),
    "triposr": (_triposr, (BOTH,)),
}
"""Parts by name, the most telling ones first."""
