"""Scribbles: short curves inside a mistake, as points and as maps, with fixed shapes."""

from __future__ import annotations

import pytest
import torch

from fastsam3d.train.scribbles import (
    ScribbleConfig,
    Scribbles,
    draw_scribbles,
    scribble_maps,
    scribble_points,
)

SIDE = 16
COUNT = 60


def ball(radius: float = 5.0, centre: float = 8.0) -> torch.Tensor:
    axis = torch.arange(SIDE) - centre
    inside = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2 < radius**2
    return inside.repeat(COUNT, 1, 1, 1)


def picked(volume: torch.Tensor, path: torch.Tensor) -> torch.Tensor:
    rows = torch.arange(len(path))[:, None]
    return volume[rows, path[..., 0], path[..., 1], path[..., 2]]


@pytest.fixture
def scribbles() -> Scribbles:
    torch.manual_seed(0)
    return draw_scribbles(ball(centre=9.0), ball(centre=6.0))


def test_curves_stay_in_mistakes_of_their_own_kind(scribbles: Scribbles) -> None:
    mask, target = ball(centre=9.0), ball(centre=6.0)
    path, labels = scribbles
    assert set(labels.tolist()) == {0.0, 1.0}
    is_positive = labels == 1
    assert picked(target & ~mask, path)[is_positive].all()
    assert picked(mask & ~target, path)[~is_positive].all()


def test_steps_join_and_curves_go_somewhere(scribbles: Scribbles) -> None:
    steps = (scribbles.path[:, 1:] - scribbles.path[:, :-1]).abs()
    assert steps.max() <= 1 + 1  # a step of one cell may round over two
    spread = (scribbles.path.amax(1) - scribbles.path.amin(1)).amax(1)
    assert spread.float().median() >= 3


def test_planar_curves_keep_one_slice() -> None:
    torch.manual_seed(0)
    config = ScribbleConfig(share_planar=1.0)
    path, _ = draw_scribbles(torch.zeros_like(ball()), ball(), config=config)
    extent = path.amax(1) - path.amin(1)
    assert (extent == 0).any(1).all()
    free = draw_scribbles(ball() & False, ball(), config=ScribbleConfig(share_planar=0.0)).path
    assert ((free.amax(1) - free.amin(1)) > 0).all(1).float().mean() > 0.7


def test_lengths_vary_between_the_limits() -> None:
    torch.manual_seed(0)
    config = ScribbleConfig(num_steps=12, min_steps=3, wander=0.0)
    everything = torch.ones(24, 32, 32, 32, dtype=torch.bool)
    path, _ = draw_scribbles(~everything, everything, config=config)
    assert path.shape == (24, 13, 3)
    moves = (path[:, 1:] != path[:, :-1]).any(-1).sum(1)
    assert moves.min() <= 4
    assert moves.max() >= 10


def test_a_mistake_of_one_cell_holds_the_curve() -> None:
    target = torch.zeros(1, SIDE, SIDE, SIDE, dtype=torch.bool)
    target[0, 3, 0, 15] = True
    scribbles = draw_scribbles(target & False, target)
    assert (scribbles.path == torch.tensor([3, 0, 15])).all()
    points, labels = scribble_points(scribbles, 4)
    assert labels.tolist() == [[1, -1, -1, -1]]
    assert ((points // 2).long() == torch.tensor([3, 0, 15])).all()


def test_without_a_mistake_nothing_is_drawn() -> None:
    scribbles = draw_scribbles(ball(), ball())
    _, labels = scribble_points(scribbles, 3)
    assert (labels == -1).all()
    assert not any(drawn.any() for drawn in scribble_maps(scribbles, SIDE))


def test_points_lie_on_the_curve_from_end_to_end(scribbles: Scribbles) -> None:
    points, labels = scribble_points(scribbles, 5)
    assert points.shape == (COUNT, 5, 3)
    cells = (points // 2).long()
    assert torch.equal(cells[:, 0], scribbles.path[:, 0])
    assert torch.equal(cells[:, -1], scribbles.path[:, -1])
    assert torch.equal(labels[:, 0], scribbles.labels)
    used = labels >= 0
    assert (labels == scribbles.labels[:, None])[used].all()
    assert used.float().mean() > 0.5
    assert scribble_points(scribbles, 1)[0].shape == (COUNT, 1, 3)


def test_maps_hold_the_cells_of_the_path_by_sign(scribbles: Scribbles) -> None:
    positive, negative = scribble_maps(scribbles, SIDE)
    is_positive = scribbles.labels == 1
    assert picked(positive, scribbles.path)[is_positive].all()
    assert picked(negative, scribbles.path)[~is_positive].all()
    assert not positive[~is_positive].any()
    assert not negative[is_positive].any()
    cells = [len(torch.unique(path, dim=0)) for path in scribbles.path]
    assert (positive | negative).flatten(1).sum(1).tolist() == cells


def test_same_seed_same_scribbles() -> None:
    drawn: list[Scribbles] = []
    for _ in range(2):
        torch.manual_seed(4)
        drawn.append(draw_scribbles(ball() & False, ball()))
    assert torch.equal(drawn[0].path, drawn[1].path)


def test_shapes_are_fixed_so_that_the_whole_is_one_graph() -> None:
    """No value decides a shape or a branch: the device "meta" has none to ask for."""
    mask = torch.zeros(3, SIDE, SIDE, SIDE, dtype=torch.bool, device="meta")
    scribbles = draw_scribbles(mask, ~mask)
    points, labels = scribble_points(scribbles, 6)
    maps = scribble_maps(scribbles, SIDE)
    assert (points.shape, labels.shape) == ((3, 6, 3), (3, 6))
    assert all(drawn.shape == (3, SIDE, SIDE, SIDE) for drawn in maps)
