"""Drawn prompts reach the model as few, well-spread points; the middle one comes last."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsam3d.prompts import Box, Lasso, Point, PromptSet, Scribble, SliceBox
from fastsam3d.prompts.model_view import DrawnPoints, model_prompts, spread
from fastsam3d.volume import Geometry

GEOMETRY = Geometry((60, 50, 12), np.diag([1.0, 1.0, 4.0, 1.0]))
CONFIG = DrawnPoints(max_scribble=3, scribble_step_mm=10, max_lasso=3, lasso_step_mm=5)
SQUARE = [(10, 10, 5), (10, 40, 5), (40, 40, 5), (40, 10, 5)]


def seen(*prompts: object) -> PromptSet:
    return model_prompts(PromptSet(prompts), GEOMETRY, CONFIG)


def test_a_scribble_becomes_points_along_it_and_the_middle_one_is_last() -> None:
    line = [(5, 20, 3), (45, 20, 3)]
    points = seen(Scribble.voxel(line, axis=2)).points
    assert [point.position for point in points] == [(45, 20, 3), (5, 20, 3), (25, 20, 3)]
    assert all(point.positive for point in points)
    assert not any(p.positive for p in seen(Scribble.voxel(line, positive=False)).points)


def test_a_short_scribble_is_one_point() -> None:
    assert len(seen(Scribble.voxel([(5, 20, 3), (9, 20, 3)])).points) == 1


def test_the_points_of_a_lasso_lie_deep_inside() -> None:
    points = np.array([p.position for p in seen(Lasso.voxel(SQUARE, axis=2)).points])
    assert len(points) == 3
    assert np.all((points[:, :2] >= 17) & (points[:, :2] <= 34))
    assert np.abs(points[-1] - (24.5, 24.5, 5)).max() <= 1


def test_a_negative_lasso_is_negative_points() -> None:
    points = seen(Lasso.voxel(SQUARE, axis=2, positive=False)).points
    assert points
    assert not any(point.positive for point in points)


def test_other_prompts_are_passed_on_in_their_order() -> None:
    box, point = Box.voxel((0, 0, 0), (30, 30, 9)), Point.voxel((5, 5, 5))
    moved = seen(box, Scribble.voxel([(5, 20, 3)]), point)
    assert list(moved) == [box, Point.voxel((5, 20, 3)), point]


def test_a_slice_box_is_a_point_in_its_middle() -> None:
    assert list(seen(SliceBox.voxel(2, 4, (10, 20), (15, 31))))[-1] == Point.voxel((12, 25, 4))


@settings(deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(0, 11)] * 3), min_size=1, max_size=40, unique=True),
    st.integers(1, 5),
)
def test_chosen_voxels_are_apart_and_leave_no_gap(voxels: list, limit: int) -> None:
    candidates = np.array(voxels)
    chosen = spread(candidates, GEOMETRY, limit=limit, step_mm=6.0)
    at, all_mm = chosen * (1, 1, 4), candidates * (1, 1, 4)
    gaps = np.linalg.norm(all_mm[:, None] - at[None], axis=-1).min(axis=1)
    between = np.linalg.norm(at[:, None] - at[None], axis=-1)
    assert len(chosen) <= limit
    assert len(chosen) == limit or gaps.max() < 6
    assert np.all(between[~np.eye(len(at), dtype=bool)] >= 6)
