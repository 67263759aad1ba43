"""The fast path gives what the plain one gives, compiles each kind of block once, and can fail."""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from generation.acceleration.eight_bit import Float8Linear, quantise
from generation.acceleration.graphs import GraphPool
from generation.lift.triposplat import TripoSplat, accelerated
from generation.lift.triposplat.accelerated import (
    accelerate,
    accelerate_encoders,
    filled_up,
    hold_in_eight_bits,
)
from generation.lift.triposplat.attention import Repeated, attend
from generation.lift.triposplat.fast_attention import Kernel, attend_by, best_attention, is_right
from generation.lift.triposplat.features import PictureEncoders
from generation.lift.triposplat.octree import sample_points
from generation.recovery import attempt
from scripts.benchmarks.random_triposplat import untrained, untrained_encoders
from tests.generation.lift.triposplat.conftest import Tensors, off_by, recorded
from tests.support.tiny_networks import TRIPOSPLAT, TRIPOSPLAT_ENCODERS

CPU = torch.device("cpu")
Backend = Callable[..., Any]


def kernel(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The CPU's kernel that returns the log-sum-exp."""
    found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
    return found[0], found[1]


@pytest.fixture
def compilations() -> Iterator[list[int]]:
    """Counts the compilations by `backend`."""
    torch._dynamo.reset()
    yield []
    torch._dynamo.reset()


@pytest.fixture
def backend(compilations: list[int]) -> Backend:
    def compile_nothing(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Backend:
        compilations.append(len(inputs))
        return graph.forward

    return compile_nothing


@pytest.fixture
def encoders() -> PictureEncoders:
    return untrained_encoders(TRIPOSPLAT_ENCODERS)


@pytest.fixture
def own(tiny: TripoSplat) -> TripoSplat:
    """A copy to change."""
    return copy.deepcopy(tiny)


def guided(model: TripoSplat, given: Tensors) -> tuple[Tensor, Tensor]:
    features = given["feature1"], given["feature2"]
    with torch.inference_mode():
        condition = model.flow.condition(*features)
        empty = model.flow.condition(*(torch.zeros_like(x[:, :1]) for x in features))
        inputs = given["latent"], given["camera"], given["t_model"]
        return model.flow.velocities(*inputs, condition, empty, torch.tensor(3.0))


@pytest.mark.parametrize("repeated", [None, Repeated(5, 2), Repeated(31, 4101)])
def test_further_copies_of_a_key_are_added_exactly(repeated: Repeated | None) -> None:
    generator = torch.Generator().manual_seed(2)
    query, key, value = torch.randn(3, 2, 33, 4, 16, generator=generator)
    found = attend_by(kernel)(query, key, value, repeated)
    masked = attend(query, key, value, repeated)
    if repeated is not None:
        further = [
            x[:, repeated.place, None].expand(-1, repeated.times - 1, -1, -1) for x in (key, value)
        ]
        key, value = torch.cat([key, further[0]], dim=1), torch.cat([value, further[1]], dim=1)
    # In float32, thousands of equal keys add up to an error of their own.
    expected = attend(query.double(), key.double(), value.double()).float()
    assert off_by(found, expected) <= 2e-6
    assert off_by(masked, expected) <= 2e-6


def test_a_kernel_without_masks_gives_the_velocities_of_the_public_code(
    own: TripoSplat, flow_reference: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerated, "best_attention", lambda *sizes: attend_by(kernel))
    accelerated.attend_fast(own)
    latent, camera = guided(own, flow_reference)
    assert off_by(latent, flow_reference["velocity_latent_guided3"]) <= 2e-5
    assert off_by(camera, flow_reference["velocity_camera_guided3"]) <= 2e-5


def test_a_kernel_is_taken_only_if_it_is_right() -> None:
    def in_base_two(*tokens: Tensor) -> tuple[Tensor, Tensor]:
        attended, log_sum = kernel(*tokens)
        return attended, log_sum / torch.log(torch.tensor(2.0))

    def raising(error: Exception) -> Kernel:
        def kernel(*tokens: Tensor) -> tuple[Tensor, Tensor]:
            raise error

        return kernel

    try_out = partial(is_right, heads=2, head_dim=16, device=CPU, dtype=torch.float32)
    assert try_out(kernel)
    assert not try_out(in_base_two)
    assert not try_out(raising(AttributeError("no such operator")))
    assert not try_out(raising(RuntimeError("head size is not supported")))
    with pytest.raises(torch.OutOfMemoryError):
        try_out(raising(torch.OutOfMemoryError("2 GiB")))
    assert best_attention(2, 16, CPU, torch.bfloat16) is attend


@pytest.mark.timeout(300)
def test_accelerated_networks_give_the_public_numbers_and_compile_each_kind_of_block_once(
    own: TripoSplat,
    encoders: PictureEncoders,
    flow_reference: Tensors,
    octree_reference: Tensors,
    gaussians_reference: Tensors,
    backend: Backend,
    compilations: list[int],
    log: list[str],
) -> None:
    accelerate(own, encoders, 2000, backend=backend)
    latent, _ = guided(own, flow_reference)
    assert off_by(latent, flow_reference["velocity_latent_guided3"]) <= 2e-5
    # A block of latent tokens, a joint one with the picture's tokens, and with a single one.
    assert len(compilations) == 3
    given = octree_reference
    with torch.inference_mode():
        uniform = recorded(given, "l8", 8)
        points = sample_points(own.decoder.octree, given["latent"], 48, uniform)
        features = own.decoder.gs(gaussians_reference["points"], gaussians_reference["latent"])
    assert torch.equal(points, given["l8_points"])
    assert off_by(features, gaussians_reference["features"]) <= 2e-5
    # The first block of a network is given a view, which counts as another kind of tensor.
    assert len(compilations) == 3 + 2 + 2
    # Other counts of points.
    for count in (1000, 20_000):
        own.decoder.decode(given["latent"], count, seed=2)
    assert len(compilations) == 7
    assert not log, log


@pytest.mark.timeout(300)
def test_accelerated_encoders_see_the_same_and_compile_once(
    encoders: PictureEncoders, backend: Backend, compilations: list[int], log: list[str]
) -> None:
    picture = torch.randint(256, (32, 48, 3), generator=torch.Generator().manual_seed(1)).byte()
    plain = encoders(picture, torch.Generator().manual_seed(1))
    accelerate_encoders(encoders, GraphPool(), backend)
    fast = encoders(picture, torch.Generator().manual_seed(1))
    for found, expected in zip(fast, plain, strict=True):
        assert off_by(found, expected) <= 1e-5
    encoders(255 - picture, torch.Generator())
    # A layer of DINOv3, and the VAE's encoder.
    assert len(compilations) == 2
    assert not log, log


def test_networks_that_cannot_be_compiled_run_eagerly_and_each_says_so_once(
    own: TripoSplat, encoders: PictureEncoders, flow_reference: Tensors, log: list[str]
) -> None:
    def broken(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Backend:
        raise RuntimeError("no compiler")

    torch._dynamo.reset()
    accelerate(own, encoders, 2000, backend=broken)
    for _ in range(2):
        latent, _ = guided(own, flow_reference)
        own.decoder.decode(torch.zeros(1, 64, 8), 320, seed=1)
    assert off_by(latent, flow_reference["velocity_latent_guided3"]) <= 2e-5
    for name, line in zip(("flow", "octree", "Gaussians"), log, strict=True):
        assert f"TripoSplat's {name} runs eagerly" in line


def test_cells_are_filled_up_to_few_numbers_all_of_which_are_prepared_at_first() -> None:
    seen: list[int] = []

    def likely(cells: Tensor, resolution: Tensor, latent: Tensor) -> Tensor:
        seen.append(cells.shape[1])
        return cells * 2

    network = filled_up(likely, points=5000)
    for count, sizes in [
        (1, [512, 1024, 2048, 4096, 8192, 512]),
        (512, [512]),
        (513, [1024]),
        (5000, [8192]),
        (9000, [16_384]),
    ]:
        cells = torch.rand(1, count, 3)
        assert torch.equal(network(cells, torch.ones(1), torch.zeros(1, 4, 8)), cells * 2)
        assert seen == sizes
        seen.clear()


def test_sizes_that_ran_out_of_memory_are_prepared_by_the_next_call() -> None:
    seen: list[int] = []

    def likely(cells: Tensor, resolution: Tensor, latent: Tensor) -> Tensor:
        seen.append(cells.shape[1])
        if seen == [512, 1024]:
            raise torch.OutOfMemoryError("2 GiB")
        return cells

    network = filled_up(likely, points=2000)
    inputs = torch.rand(1, 3, 3), torch.ones(1), torch.zeros(1, 4, 8)
    with pytest.raises(torch.OutOfMemoryError):
        network(*inputs)
    network(*inputs)
    assert seen == [512, 1024, 1024, 2048, 512]


def test_blocks_alone_are_held_in_8_bits_and_answer_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerated, "quantise", partial(quantise, smallest=1))
    model = untrained(TRIPOSPLAT)
    inputs = torch.randn(1, 64, 16), torch.randn(1, 1, 5), torch.tensor([600.0])
    condition = model.flow.condition(torch.randn(1, 7, 32), torch.randn(1, 7, 16))
    points = torch.rand(1, 9, 3)
    before = model.flow(*inputs, condition)[0], model.decoder.gs(points, inputs[0])
    hold_in_eight_bits(model)
    narrow = [name for name, m in model.named_modules() if isinstance(m, Float8Linear)]
    blocks = ("flow.noise_refiner.", "flow.blocks.", "decoder.octree.blocks.", "decoder.gs.blocks.")
    assert {block for block in blocks for name in narrow if name.startswith(block)} == set(blocks)
    assert all(name.startswith(blocks) for name in narrow)
    after = model.flow(*inputs, condition)[0], model.decoder.gs(points, inputs[0])
    for found, expected in zip(after, before, strict=True):
        assert 0 < torch.dist(found, expected) < 0.05 * expected.norm()


def test_decoding_that_ran_out_of_memory_is_done_again_with_the_same_result(
    own: TripoSplat, octree_reference: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    latent = octree_reference["latent"]
    decode = partial(own.decoder.decode, latent, 640, seed=4)
    expected = decode()
    network, failures = own.decoder.gs.forward, iter([True])

    def short_of_memory(*inputs: Tensor) -> Tensor:
        if next(failures, False):
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        return network(*inputs)

    monkeypatch.setattr(own.decoder.gs, "forward", short_of_memory)
    dropped: list[bool] = []
    found = attempt("gaussians", decode, lambda: dropped.append(True))
    assert dropped == [True]
    assert torch.equal(found.positions, expected.positions)
