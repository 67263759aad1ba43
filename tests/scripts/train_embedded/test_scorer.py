"""What the scorer learns from, and that training, scale and export hold together."""

from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch

from generation.presets import preset
from generation.scoring import embedded
from protocol.tasks import TextTask
from scripts.train_embedded import export
from scripts.train_embedded.lifted import Lifted, exact_picture, without_held_out, write_order
from scripts.train_embedded.loop import Plan
from scripts.train_embedded.objects import SHAPES
from scripts.train_embedded.palette import COLOURS, palette
from scripts.train_embedded.prompts import (
    COLOUR_NAMES,
    OBJECT_NAMES,
    held_out_pairs,
    training_pairs,
)
from scripts.train_embedded.recipe import Places, ScorerPlan
from scripts.train_embedded.train_scorer import THRESHOLD, agreement, exponent, judge, move, train

ORDERS = [write_order(number) for number in range(2000)]


@cache
def world(count: int, side: int = 64) -> Lifted:
    """Exact pictures in place of views, of alternating training pairs."""
    pairs = training_pairs()[:: len(training_pairs()) // count][:count]
    views = []
    for number, (colour, shape) in enumerate(pairs):
        _, rgba = exact_picture(colour, shape, number, side)
        rgba[:3] *= rgba[3:]
        views.append((rgba.clamp(0, 1) * 255).round().byte().expand(4, -1, -1, -1))
    wanted = torch.tensor(pairs)
    ious = torch.full((count, len(SHAPES)), 0.1)
    ious[torch.arange(count), wanted[:, 1]] = 0.9
    stacked = torch.stack(views)
    return Lifted(
        views=stacked,
        cutouts=stacked[:, :1].clone(),
        wanted=wanted,
        colours=palette()[wanted[:, 0]],
        ious=ious,
        numbers=torch.arange(count),
    )


def test_no_cloud_is_ordered_of_a_held_out_pair() -> None:
    pairs = {(order.colour, order.shape) for order in ORDERS}
    assert pairs == set(training_pairs())


def test_no_prompt_names_a_held_out_pair_even_across_its_two_objects() -> None:
    scorer = embedded.load(preset("embedded"), None, torch.device("cpu"))
    two = 0
    for order in ORDERS:
        if not order.prompt:
            continue
        wanted = scorer.wanted(TextTask(id="t", prompt=order.prompt))
        assert order.colour in wanted.colours
        assert order.shape in wanted.objects
        assert not set(product(wanted.colours, wanted.objects)) & held_out_pairs(), order.prompt
        two += len(wanted.objects) == 2
    assert two >= 150


def test_a_cloud_that_came_out_as_a_held_out_pair_is_left_out() -> None:
    lifted = world(16)
    lifted = replace(lifted, colours=lifted.colours.clone(), ious=lifted.ious.clone())
    colour, shape = next(iter(held_out_pairs()))
    lifted.colours[3] = palette()[colour]
    lifted.ious[3] = 0.1
    lifted.ious[3, shape] = 0.5
    assert without_held_out(lifted).numbers.tolist() == [0, 1, 2, *range(4, 16)]


def test_orders_are_the_same_every_time_and_some_are_made_to_fail() -> None:
    assert [write_order(number) for number in range(50)] == ORDERS[:50]
    assert all(order.hole is not None for order in ORDERS[7::10])
    assert all(order.prompt == "" for order in ORDERS[8::10])
    assert {order.steps for order in ORDERS[5::10]} == {2, 3, 4}


def test_a_cloud_is_moved_alike_in_all_its_views() -> None:
    views = world(16).views.float() / 255
    moved = move(views, torch.Generator().manual_seed(0))
    assert moved.shape == views.shape
    assert not torch.equal(moved, views)
    # But for the grain.
    assert (moved[:, 0] - moved[:, 1]).abs().max() < 0.1


def test_training_learns_and_what_is_written_judges_the_same(tmp_path: Path) -> None:
    lifted = world(16)
    plan = ScorerPlan(clouds=16, training=Plan(steps=30, batch=8, rate=4e-3, average=0.9))
    before = embedded.ScorerNetwork(len(COLOURS), len(SHAPES))
    network, _ = train(plan, Places(tmp_path, tmp_path / "out"), lifted, "cpu")
    judged = judge(network, lifted.views)
    assert agreement(network, lifted)[0].mean() > 2 * agreement(before, lifted)[0].mean()

    config = embedded.ScorerConfig(
        colours=dict.fromkeys(COLOUR_NAMES, ()),
        objects=dict.fromkeys(OBJECT_NAMES, ()),
        exponent=1,
    )
    export.write_scorer(network, config, tmp_path / "out")
    scorer = embedded.read(tmp_path / "out" / export.SCORER, torch.device("cpu"))
    for index in range(4):
        seen = scorer.judge(lifted.views[index].float() / 255)
        for part, expected in zip(seen, judged, strict=True):
            torch.testing.assert_close(part, expected[index], atol=0.05, rtol=0.02)


def test_the_scale_puts_the_threshold_where_right_and_wrong_meet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Of the solids that look 0.55 right half are, of those further up more, further down fewer.
    agreed = torch.linspace(0.05, 0.99, 2000)
    draws = torch.rand(2000, generator=torch.Generator().manual_seed(0))
    right = (draws < torch.sigmoid(12 * (agreed.log() - torch.tensor(0.55).log()))).float()
    monkeypatch.setattr(
        "scripts.train_embedded.train_scorer.agreement", lambda network, lifted: (agreed, right)
    )
    power = exponent(embedded.ScorerNetwork(12, 16), world(16))
    assert 0.55**power == pytest.approx(THRESHOLD, abs=0.03)
