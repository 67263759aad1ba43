import torch

from scripts.train_embedded.objects import SHAPES, VARIATIONS
from scripts.train_embedded.palette import palette
from scripts.train_embedded.world import (
    REACH,
    Solid,
    average_solid,
    draw_solids,
    paint_table,
    sample_points,
    trace,
)

NAMES = [shape.name for shape in SHAPES]


def average(name: str, yaw: float = 0.0) -> Solid:
    return average_solid(SHAPES[NAMES.index(name)], torch.tensor([yaw]))


def test_there_are_enough_objects_and_colours() -> None:
    assert len(set(NAMES)) == len(SHAPES) >= 16
    assert len(palette()) >= 12


def test_the_sphere_is_the_ball_that_everything_fits_in() -> None:
    points = torch.randn(1, 200, 3, generator=torch.Generator().manual_seed(0))
    expected = points.norm(dim=-1) - REACH
    torch.testing.assert_close(average("sphere").distance(points), expected, atol=1e-3, rtol=0)


def test_the_cube_has_six_equal_faces() -> None:
    half = REACH / 3**0.5
    faces = torch.cat([torch.eye(3), -torch.eye(3)])[None] * half
    distance = average("cube").distance(faces)
    torch.testing.assert_close(distance, torch.zeros(1, 6), atol=0.03, rtol=0)
    assert distance.max() - distance.min() < 1e-5


def test_every_solid_is_centred_and_fits_its_ball() -> None:
    generator = torch.Generator().manual_seed(1)
    line = torch.linspace(-1, 1, 41)
    grid = torch.cartesian_prod(line, line, line)
    for shape in SHAPES:
        solid, _ = draw_solids(shape, 2, generator)
        inside = solid.distance(grid.expand(2, -1, -1)) < 0
        for view in range(2):
            points = grid[inside[view]]
            assert len(points) > 100, shape.name
            # Sharp corners between the points that the size was measured at stick out a little.
            assert points.norm(dim=-1).max() <= REACH + 0.06, shape.name
            assert points.abs().max() <= 0.87, shape.name
            # Turned about z, a box stays centred only along z.
            middle = (points.amax(0) + points.amin(0)) / 2
            assert middle[2].abs() < 0.06, shape.name


def test_the_distance_grows_no_faster_than_the_way() -> None:
    # Sphere tracing and the 3D loss both rely on it.
    generator = torch.Generator().manual_seed(2)
    points = torch.rand(1, 400, 3, generator=generator) * 1.7 - 0.85
    moved = points + 0.02 * torch.nn.functional.normalize(
        torch.randn(points.shape, generator=generator), dim=-1
    )
    for shape in SHAPES:
        if shape.name == "mushroom":
            continue  # An ellipsoid's distance is only approximate.
        solid = average_solid(shape, torch.zeros(1))
        change = (solid.distance(moved) - solid.distance(points)).abs()
        assert change.max() < 0.02 * 1.001 + 1e-5, shape.name


def test_yaw_turns_the_face_to_the_right() -> None:
    mug = average("mug")
    turned = average("mug", torch.pi / 2)
    points = torch.randn(1, 100, 3, generator=torch.Generator().manual_seed(3)) * 0.4
    x, y, z = points.unbind(-1)
    rotated = torch.stack((-y, x, z), dim=-1)
    torch.testing.assert_close(turned.distance(rotated), mug.distance(points), atol=1e-4, rtol=0)


def test_the_traced_mask_is_the_exact_silhouette() -> None:
    # The ball's silhouette is a disc whose radius follows from the camera alone.
    from scripts.train_embedded.world import BACKGROUND, CAMERA_DISTANCE, CAMERA_HALF_VIEW

    size = 64
    _, parts = trace(average("sphere"), torch.tensor([0.3]), size)
    radius = REACH / (CAMERA_DISTANCE**2 - REACH**2) ** 0.5 * CAMERA_DISTANCE / CAMERA_HALF_VIEW
    line = (torch.arange(size) + 0.5) / size * 2 - 1
    distance = (line[:, None] ** 2 + line**2).sqrt()
    mask = parts[0] != BACKGROUND
    assert mask[distance < radius - 0.02].all()
    assert not mask[distance > radius + 0.02].any()


def test_the_camera_sees_the_right_side_on_the_right() -> None:
    # The mug's handle is towards +y.
    _, parts = trace(average("mug"), torch.tensor([0.2]), 48)
    columns = (parts[0] < 255).any(0).nonzero()[:, 0]
    rows = (parts[0] < 255).sum(0)
    assert rows[columns[0]] > 1
    assert rows[columns[-1] - 4] < rows[columns[0] + 4]


def test_points_for_the_3d_loss_are_near_the_surface_and_exact() -> None:
    solid, _ = draw_solids(SHAPES[NAMES.index("chair")], 2, torch.Generator().manual_seed(4))
    points, distances = sample_points(solid, 800, 0.87, torch.Generator().manual_seed(5))
    assert points.abs().max() <= 0.87
    assert (distances.abs() < 0.15).float().mean() > 0.55
    torch.testing.assert_close(distances, solid.distance(points))


def test_every_part_has_a_paint_and_most_take_the_named_colour() -> None:
    table = paint_table()
    for number, shape in enumerate(SHAPES):
        paints = shape.parts(torch.zeros(1, 1, 3), torch.zeros(1, VARIATIONS))
        assert table[number, 0, 0] == 1.0, shape.name
        assert len(paints) <= table.shape[1]
