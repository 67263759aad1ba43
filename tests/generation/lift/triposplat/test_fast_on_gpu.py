"""The fast path on a GPU: like the plain one, recorded without a warning, compiled once, small."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from loguru import logger
from torch import Tensor
from torch._dynamo.utils import counters

from generation.acceleration.eight_bit import quantise
from generation.acceleration.graphs import GraphPool
from generation.lift.triposplat import (
    PUBLIC,
    FlowTransformer,
    Sampler,
    SplatDecoder,
    TripoSplat,
    TripoSplatConfig,
    accelerated,
)
from generation.lift.triposplat.accelerated import accelerate, accelerate_flow, hold_in_eight_bits
from generation.lift.triposplat.attention import attend
from generation.lift.triposplat.config import FlowConfig, GaussianConfig, OctreeConfig
from generation.lift.triposplat.encoder_config import DinoConfig, EncoderConfig, VaeConfig
from generation.lift.triposplat.fast_attention import best_attention, cudnn, flash, is_right
from generation.lift.triposplat.features import PictureEncoders
from scripts.benchmarks.random_triposplat import untrained, untrained_encoders

pytestmark = pytest.mark.cuda

# The public heads, so that the same kernels are taken.
_SHARED = {"width": 256, "heads": 4, "head_dim": 64, "mlp_ratio": 4}
CONFIG = TripoSplatConfig(
    flow=FlowConfig(
        **_SHARED,
        latent_tokens=600,
        latent_channels=16,
        camera_channels=5,
        refiner_blocks=1,
        joint_blocks=3,
        condition_channels_dino=128,
        condition_channels_vae=32,
        camera_mlp_layers=2,
    ),
    octree=OctreeConfig(**_SHARED, blocks=2, context_channels=16, levels=8),
    gaussian=GaussianConfig(**_SHARED, blocks=2, context_channels=16, gaussians_per_point=32),
)
ENCODERS = EncoderConfig(
    dinov3=DinoConfig(
        hidden_size=128, num_attention_heads=2, num_hidden_layers=2, intermediate_size=256
    ),
    vae=VaeConfig(block_out_channels=(32, 32, 32, 32), layers_per_block=1, latent_channels=8),
)
COUNTS = (40_000, 20_000, 9_000)
GIB = 2**30


@dataclass(frozen=True)
class Pair:
    """The same networks twice.

    Attributes:
        plain: As they are.
        fast: Accelerated.
        plain_encoders: As they are.
        fast_encoders: Accelerated.
        warnings: Of the log, since they were built.
    """

    plain: TripoSplat
    fast: TripoSplat
    plain_encoders: PictureEncoders
    fast_encoders: PictureEncoders
    warnings: list[str]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    torch._dynamo.reset()
    models = [untrained(CONFIG, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
    encoders = [untrained_encoders(ENCODERS, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
    lines: list[str] = []
    sink = logger.add(lines.append, level="WARNING", format="{message}")
    accelerate(models[1], encoders[1], COUNTS[0] // 32)
    yield Pair(models[0], models[1], encoders[0], encoders[1], lines)
    logger.remove(sink)
    torch._dynamo.reset()


def features(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator("cuda").manual_seed(seed)
    dino, vae = (
        torch.randn(1, 325, channels, generator=generator, device="cuda") for channels in (128, 32)
    )
    return dino, vae


def picture(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (256, 256, 3), generator=generator).byte()


def sampler(model: TripoSplat, seed: int) -> Sampler:
    return Sampler(model.flow, *features(seed), steps=4)


def off_by_share(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference over the norm of what is expected."""
    return float(torch.dist(found.float(), expected.float()) / expected.float().norm())


@pytest.mark.parametrize("kernel", [cudnn, flash])
def test_both_kernels_exist_and_are_right(kernel: object) -> None:
    if kernel is cudnn and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("cuDNN attends on Ampere and newer")
    sizes = 16, 64, torch.device("cuda"), torch.bfloat16
    assert is_right(kernel, *sizes)  # type: ignore[arg-type]
    assert best_attention(*sizes) is not attend


def test_velocities_are_those_of_the_plain_path(pair: Pair) -> None:
    exact = copy.deepcopy(pair.plain.flow).float()
    cameras: dict[str, list[Tensor]] = {"exact": [], "plain": [], "fast": []}
    for seed in range(4):
        plain, fast = (sampler(model, seed) for model in (pair.plain, pair.fast))
        true = Sampler(exact, *features(seed), steps=4)
        state = plain.start(torch.Generator().manual_seed(seed))
        for _ in range(2):
            expected, found = plain.velocities(state), fast.velocities(state)
            # Either is bfloat16's rounding away from the true ones; guidance multiplies it.
            assert off_by_share(found[0], expected[0]) < 0.04
            for key, camera in (
                ("exact", true.velocities(state)[1]),
                ("plain", expected[1]),
                ("fast", found[1]),
            ):
                cameras[key].append(camera)
            state = fast.step(state)
    # A camera has five numbers, too few for a norm: all of them together are compared.
    joined = {key: torch.cat(values) for key, values in cameras.items()}
    rounding = off_by_share(joined["plain"], joined["exact"])
    assert off_by_share(joined["fast"], joined["exact"]) < min(1.5 * rounding, 0.04)
    assert not pair.warnings, pair.warnings


def test_the_empty_condition_of_one_token_is_that_of_many(pair: Pair) -> None:
    flow = pair.fast.flow
    state = sampler(pair.fast, 1).start(torch.Generator().manual_seed(2))
    time = torch.tensor([400.0], device="cuda")
    with torch.inference_mode():
        empty = flow.condition(*(torch.zeros_like(x[:, :1]) for x in features(1)))
        one = flow(state.latent, state.camera, time, empty, copies=325)
        all_tokens = flow(state.latent, state.camera, time, empty.expand(-1, 325, -1))
        other = flow(state.latent, state.camera, time, empty, copies=30)
    assert off_by_share(one[0], all_tokens[0]) < 0.02
    assert off_by_share(other[0], all_tokens[0]) > 2 * off_by_share(one[0], all_tokens[0])


def test_decoded_gaussians_are_those_of_the_plain_path(pair: Pair) -> None:
    latent = torch.randn(1, 600, 16, device="cuda")
    points = torch.rand(1, 700, 3, device="cuda")
    with torch.inference_mode():
        assert (
            off_by_share(
                pair.fast.decoder.gs(points, latent), pair.plain.decoder.gs(points, latent)
            )
            < 0.03
        )
        resolution = torch.full((1,), 16, device="cuda")
        found, expected = (
            model.decoder.octree(points, resolution, latent) for model in (pair.fast, pair.plain)
        )
    assert off_by_share(found, expected) < 0.03
    clouds = [pair.fast.decoder.decode(latent, 20_000, seed=3) for _ in range(2)]
    assert torch.equal(clouds[0].positions, clouds[1].positions)
    assert not pair.warnings, pair.warnings


def test_features_are_those_of_the_plain_path(pair: Pair) -> None:
    expected = pair.plain_encoders(picture(1), torch.Generator().manual_seed(1))
    found = pair.fast_encoders(picture(1), torch.Generator().manual_seed(1))
    assert off_by_share(found.dino, expected.dino) < 0.03
    assert off_by_share(found.vae, expected.vae) < 0.03
    assert not pair.warnings, pair.warnings


def run(pair: Pair, seed: int) -> None:
    found = pair.fast_encoders(picture(seed), torch.Generator().manual_seed(seed))
    assert found.dino.isfinite().all()
    latent = sampler(pair.fast, seed).sample(torch.Generator().manual_seed(seed))
    for count in COUNTS:
        pair.fast.decoder.decode(latent, count, seed)


def test_a_second_run_compiles_nothing_and_takes_no_more_memory(pair: Pair) -> None:
    run(pair, 1)
    compiled = counters["stats"]["unique_graphs"]
    taken = torch.cuda.memory_allocated()
    for seed in (2, 3):
        run(pair, seed)
    latent = torch.randn(1, 600, 16, device="cuda")
    pair.fast.decoder.decode(latent, 13_000, seed=4)  # A count that nothing was prepared for.
    assert counters["stats"]["unique_graphs"] == compiled
    del latent
    # A graph of that count, and its inputs and outputs.
    assert torch.cuda.memory_allocated() - taken < 32 * 2**20
    assert not pair.warnings, pair.warnings


def test_blocks_of_8_bits_are_recorded_and_answer_alike(
    pair: Pair, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerated, "quantise", partial(quantise, smallest=1))
    narrow = copy.deepcopy(pair.plain)
    hold_in_eight_bits(narrow)
    accelerated.attend_fast(narrow)
    accelerate_flow(narrow.flow, GraphPool(), "inductor")
    plain, fast = (sampler(model, 1) for model in (pair.plain, narrow))
    state = plain.start(torch.Generator().manual_seed(1))
    expected, found = plain.velocities(state)[0], fast.velocities(state)[0]
    assert off_by_share(found, expected) < 0.2
    assert not log, log


@torch.inference_mode()
def test_a_guided_step_of_full_size_takes_less_than_2_gib() -> None:
    with torch.device("meta"):
        flow = FlowTransformer(PUBLIC.flow)
    flow.to_empty(device="cuda").to(torch.bfloat16)
    for parameter in flow.parameters():
        parameter.normal_(std=0.02)
    flow.positions.normal_()
    best = best_attention(16, 64, torch.device("cuda"), torch.bfloat16)
    for block in flow.blocks:
        block.attn.attend = best  # type: ignore[union-attr]
    condition = torch.randn(1, 4101, 1024, device="cuda", dtype=torch.bfloat16)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    latent, _ = flow.velocities(
        torch.randn(1, 8192, 16, device="cuda"),
        torch.randn(1, 1, 5, device="cuda"),
        torch.full((1,), 650.0, device="cuda"),
        condition,
        condition[:, :1],
        torch.tensor(3.0, device="cuda"),
    )
    assert latent.isfinite().all()
    assert torch.cuda.max_memory_allocated() - before < 2 * GIB


@torch.inference_mode()
def test_decoding_262144_gaussians_of_full_size_takes_less_than_1_gib() -> None:
    with torch.device("cuda"):
        decoder = SplatDecoder(PUBLIC)
    decoder = decoder.to("cuda", torch.bfloat16)
    latent = torch.randn(1, 8192, 16, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    made = decoder.decode(latent, 262_144, seed=1)
    assert len(made.positions) == 262_144
    assert torch.cuda.max_memory_allocated() - before < GIB
