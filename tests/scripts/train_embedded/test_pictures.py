import pytest
import torch

from scripts.train_embedded.bank import Bank
from scripts.train_embedded.objects import SHAPES
from scripts.train_embedded.palette import COLOURS, nearest, palette
from scripts.train_embedded.pictures import GREY, Batch, frame_for_triposr, wear
from scripts.train_embedded.prompts import held_out_pairs
from scripts.train_embedded.shading import Light, halve, over, paint_pixels, part_colours
from scripts.train_embedded.world import average_solid, paint_table, trace


@pytest.fixture(scope="module")
def bank() -> Bank:
    return Bank.draw(1, 48, 16, 0.87, seed=0, device=torch.device("cpu"))


def test_the_bank_is_the_same_for_the_same_seed(bank: Bank) -> None:
    again = Bank.draw(1, 48, 16, 0.87, seed=0, device=torch.device("cpu"))
    assert torch.equal(bank.parts, again.parts)
    assert torch.equal(bank.points, again.points)
    assert bank.objects.tolist() == list(range(len(SHAPES)))


def test_every_object_is_whole_in_the_picture(bank: Bank) -> None:
    assert bank.boxes.min() > 0
    assert bank.boxes.max() < 1


def test_the_mean_colour_of_every_object_is_nearest_to_its_name() -> None:
    # Otherwise no network could pass the evaluation, which asks just that of a splat.
    names = torch.arange(len(COLOURS))
    count = len(names)
    light = Light.canonical(count, "cpu")
    for number, shape in enumerate(SHAPES):
        colours = part_colours(paint_table(), torch.full((count,), number), palette()[names])
        yaws = torch.deg2rad(torch.arange(4) * 90.0 + shape.yaw + 24)
        normals, parts = trace(average_solid(shape, yaws), torch.full((4,), 0.26), 32)
        total = torch.zeros(count, 4)
        for view in range(4):
            shown = (normals[view].expand(count, -1, -1, -1), parts[view].expand(count, -1, -1))
            total += paint_pixels(*shown, colours, light).sum((2, 3))
        assert torch.equal(nearest(total[:, :3] / total[:, 3:]), names), shape.name


def test_no_batch_holds_a_pair_that_is_kept_for_the_evaluation(bank: Bank) -> None:
    generator = torch.Generator().manual_seed(0)
    batch = Batch.draw(bank.without_points(), 400, paint_table(), generator)
    drawn = set(zip(batch.names.tolist(), batch.bank.objects.tolist(), strict=True))
    assert len(drawn) > 100
    assert not drawn & held_out_pairs()


def test_pictures_are_exact_composites(bank: Bank) -> None:
    batch = Batch.draw(bank.without_points(), 4, paint_table(), torch.Generator().manual_seed(1))
    alpha = halve(batch.rgba)[:, 3:]
    images = batch.images()
    background = batch.backgrounds[:, :, None, None].expand_as(images)
    assert torch.equal(
        images[(alpha == 0).expand_as(images)], background[(alpha == 0).expand_as(images)]
    )
    assert set(batch.rgba[:, 3].flatten().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(over(batch.rgba, batch.backgrounds).mean(), images.mean())


def test_framing_puts_the_box_in_the_middle_on_grey() -> None:
    rgba = torch.zeros(1, 4, 64, 64)
    rgba[:, :, 8:24, 20:52] = 1.0
    boxes = torch.tensor([[20.0, 8.0, 52.0, 24.0]]) / 64
    framed = frame_for_triposr(rgba, boxes, 80, 0.8)
    white = framed[0, 0] > 0.8
    columns, rows = white.any(0).nonzero()[:, 0], white.any(1).nonzero()[:, 0]
    assert columns.tolist() == list(range(8, 72))
    assert rows.tolist() == list(range(24, 56))
    assert framed[0, :, 0, 0].tolist() == pytest.approx([GREY] * 3)


def test_wear_keeps_a_plain_picture_plain() -> None:
    plain = torch.full((3, 3, 16, 16), 0.4)
    worn = wear(plain, torch.Generator().manual_seed(2), noise=0.0)
    torch.testing.assert_close(worn, plain)
