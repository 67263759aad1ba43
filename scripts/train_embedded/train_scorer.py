"""The scorer: learns from clouds of the other networks; then its scale is fixed on further ones.

Alone, with the shipped networks: `python -m scripts.train_embedded.train_scorer`.
"""

import argparse
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from generation.scoring.embedded import Judgement, ScorerConfig, ScorerNetwork
from scripts.train_embedded import export
from scripts.train_embedded.evaluate import spare_cores
from scripts.train_embedded.lifted import Lifted, lift_all
from scripts.train_embedded.loop import Training
from scripts.train_embedded.objects import SHAPES
from scripts.train_embedded.palette import COLOURS, SYNONYMS
from scripts.train_embedded.recipe import Places, Recipe, ScorerPlan

THRESHOLD = 0.6
"""Of the validators; a result with this score is right as often as wrong."""

RIGHT_IOU = 0.7
"""A solid is right if it agrees this well with the object asked for, and with no other better."""

_RIDGE = 1e-2
"""Keeps the regression finite where the clouds are told apart without an error."""

CALIBRATION_SHARE = 8
"""One in this many clouds is kept from training, to fit the scale."""


def train(
    plan: ScorerPlan, places: Places, lifted: Lifted, device: str
) -> tuple[ScorerNetwork, float]:
    """Trains the network and finds its temperatures and the exponent of the scale.

    Args:
        plan: How long and how fast.
        places: `state` takes checkpoints and losses.
        lifted: From `lift_all`.
        device: Where to train.

    Returns:
        The network, on the CPU, and the exponent.
    """
    kept = lifted.numbers % CALIBRATION_SHARE == CALIBRATION_SHARE - 1
    learnt = lifted.select((~kept).nonzero()[:, 0]).to(device)
    torch.manual_seed(plan.training.seed)
    network = ScorerNetwork(len(COLOURS), len(SHAPES)).to(device)
    training = Training("scorer", network, plan.training, places.state)
    colours, objects = learnt.found()

    def step(generator: torch.Generator) -> Mapping[str, Tensor]:
        index = torch.randint(
            len(learnt), (plan.training.batch,), generator=generator, device=device
        )
        # Drawn pictures are judged before they are lifted, by what became of them.
        source = learnt.cutouts if training.step % 3 == 2 else learnt.views
        judged: Judgement = network(move(source[index].float() / 255, generator))
        colour = functional.cross_entropy(judged.colours, colours[index])
        shape = functional.cross_entropy(judged.objects, objects[index])
        ious = learnt.ious[index]
        # How well the cloud agrees with what it is matters more than with what it is not. Less the
        # least cross entropy that soft targets allow, so that the loss ends at 0.
        weight = 1 + 8 * functional.one_hot(objects[index], len(SHAPES))
        likeness = functional.binary_cross_entropy_with_logits(judged.likeness, ious, weight)
        likeness = likeness - functional.binary_cross_entropy(ious, ious, weight)
        return {
            "loss": colour + shape + 4 * likeness,
            "colour": colour,
            "object": shape,
            "likeness": likeness,
        }

    trained = training.run(step)
    assert isinstance(trained, ScorerNetwork)
    trained = trained.cpu()
    calibration = lifted.select(kept.nonzero()[:, 0])
    temper(trained, calibration)
    return trained, exponent(trained, calibration)


def move(views: Tensor, generator: torch.Generator) -> Tensor:
    """Shifts, scales and mirrors things (B, V, 4, S, S), all views of one alike, and adds grain."""
    count = len(views)
    draw = torch.rand(count, 4, generator=generator, device=views.device) * 2 - 1
    theta = torch.zeros(count, 2, 3, device=views.device)
    zoom = 1 + 0.08 * draw[:, 0]
    theta[:, 0, 0] = zoom * draw[:, 1].sign()
    theta[:, 1, 1] = zoom
    theta[:, :, 2] = 0.06 * draw[:, 2:]
    flat = views.flatten(1, 2)
    grid = functional.affine_grid(theta, list(flat.shape), align_corners=False)
    moved = functional.grid_sample(flat, grid, align_corners=False)
    grain = torch.randn(moved.shape, generator=generator, device=views.device)
    return (moved + 0.01 * grain * (moved > 0)).clamp(0, 1).view_as(views)


@torch.no_grad()
def judge(network: ScorerNetwork, pictures: Tensor) -> Judgement:
    """Judges (N, V, 4, S, S) uint8, a few hundred at a time."""
    parts = [network(piece.float() / 255) for piece in torch.split(pictures, 256)]
    return Judgement(*(torch.cat(column) for column in zip(*parts, strict=True)))


@torch.no_grad()
def temper(network: ScorerNetwork, lifted: Lifted) -> None:
    """Divides colour and object logits by what makes their probabilities honest, 1 or more.

    Source: temperature scaling (Guo et al. 2017), by search.
    """
    judged, (colours, objects) = judge(network, lifted.views), lifted.found()
    for logits, truth, layers, rows in (
        (judged.colours, colours, network.colour, len(COLOURS)),
        (judged.objects, objects, network.object, len(SHAPES)),
    ):
        candidates = torch.logspace(0, 1, 41).tolist()
        losses = [float(functional.cross_entropy(logits / t, truth)) for t in candidates]
        temperature = candidates[losses.index(min(losses))]
        for parameter in layers[-1].parameters():
            parameter[:rows] /= temperature


def exponent(network: ScorerNetwork, lifted: Lifted) -> float:
    """The power of colour times object that is `THRESHOLD` where half of the clouds are right.

    Each cloud is asked for twice: as it was ordered, and as what it came out as, where only the
    quality of its shape is in question. Where half of them are right, a logistic regression on the
    product's logarithm says, found by Newton's method.
    """
    found = torch.stack(lifted.found(), dim=1)
    asked = Lifted.join([lifted, replace(lifted, wanted=found)])
    product, right = agreement(network, asked)
    inputs = torch.stack([product.clamp_min(1e-3).log(), torch.ones_like(product)], dim=1).double()
    weights = torch.zeros(2, dtype=torch.float64)
    for _ in range(50):
        share = torch.sigmoid(inputs @ weights)
        curvature = inputs.T @ (inputs * (share * (1 - share))[:, None])
        gradient = inputs.T @ (right - share) - _RIDGE * weights
        weights = weights + torch.linalg.solve(curvature + _RIDGE * torch.eye(2), gradient)
    return math.log(THRESHOLD) / float(-weights[1] / weights[0])


@torch.no_grad()
def agreement(network: ScorerNetwork, lifted: Lifted) -> tuple[Tensor, Tensor]:
    """Colour times object of every cloud with what was asked for; whether it is right, 0 or 1."""
    judged = judge(network, lifted.views)
    colour, shape = lifted.wanted.unbind(1)
    row = torch.arange(len(lifted))
    product = (
        judged.colours.softmax(1)[row, colour]
        * judged.objects.softmax(1)[row, shape]
        * judged.likeness.sigmoid()[row, shape]
    )
    found = lifted.found()
    right = (found[0] == colour) & (found[1] == shape) & (lifted.ious[row, shape] >= RIGHT_IOU)
    return product, right.float()


def make(plan: ScorerPlan, places: Places, device: str, jobs: int) -> None:
    """Makes the clouds with the networks in `places.out`, trains the scorer and writes it there."""
    lifted = lift_all(places.out, places.state / "clouds", plan.clouds, jobs)
    network, power = train(plan, places, lifted, device)
    config = ScorerConfig(
        colours={name: SYNONYMS.get(name, ()) for name in COLOURS},
        objects={shape.name: shape.synonyms for shape in SHAPES},
        exponent=round(power, 3),
    )
    export.write_scorer(network, config, places.out)


def main() -> None:
    """Reads the command line and trains the scorer alone."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.train_embedded.train_scorer", description=__doc__
    )
    parser.add_argument("--out", type=Path, default=Path("generation/embedded"))
    parser.add_argument("--state", type=Path, default=Path("train-embedded"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--clouds", type=int, default=ScorerPlan.clouds)
    parser.add_argument("--jobs", type=int, default=spare_cores())
    options = parser.parse_args()
    plan = replace(Recipe().scorer_plan, clouds=options.clouds)
    make(plan, Places(options.state, options.out), options.device, options.jobs)


if __name__ == "__main__":
    main()
