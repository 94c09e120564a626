"""Clean-up steps: what each does to a known mask, on anisotropic grids, at the scan's border."""

import json

import numpy as np
import pytest

from fastsam3d.errors import ConfigError
from fastsam3d.prompts import Point
from fastsam3d.session.object_mask import ObjectMask
from fastsam3d.session.postprocess import (
    FillHoles,
    KeepComponent,
    RemoveSmall,
    Smooth,
    apply_steps,
    step_from_plain,
    step_to_plain,
)
from fastsam3d.volume import Geometry

GEOMETRY = Geometry((24, 24, 12), np.diag([1.0, 1.0, 2.0, 1.0]))


def after(array: np.ndarray, *steps: object) -> np.ndarray:
    mask = ObjectMask.cropped(GEOMETRY.region, array)
    return apply_steps(mask, steps, GEOMETRY).to_array(GEOMETRY.shape) > 0


def block(*ranges: tuple[int, int]) -> np.ndarray:
    array = np.zeros(GEOMETRY.shape, bool)
    array[tuple(slice(*pair) for pair in ranges)] = True
    return array


@pytest.mark.parametrize("method", ["median", "gaussian"])
def test_smoothing_takes_specks_and_spikes_off_and_keeps_the_body(method: str) -> None:
    body = block((5, 17), (5, 17), (3, 9))
    rough = body | block((17, 21), (10, 11), (6, 7)) | block((1, 2), (1, 2), (1, 2))
    smooth = after(rough, Smooth(2.0, method))
    assert not smooth[17:, :, :].any()
    assert not smooth[:3].any()
    assert smooth[7:15, 7:15, 4:8].all()
    assert np.count_nonzero(smooth ^ body) < 0.2 * np.count_nonzero(body)


def test_the_majority_of_a_ball_is_counted_in_millimetres() -> None:
    rough = block((5, 17), (5, 17), (3, 9)) | block((17, 18), (8, 14), (4, 8))
    found = after(rough, Smooth(2.0))
    offsets = np.argwhere(np.ones((5, 5, 3), bool)) - (2, 2, 1)
    ball = offsets[(np.square(offsets * (1, 1, 2))).sum(axis=1) <= 4]
    for voxel in np.argwhere(np.ones((20, 20, 10), bool))[::37]:
        middle = np.add(voxel, (2, 2, 1))
        assert found[tuple(middle)] == (rough[tuple((ball + middle).T)].mean() > 0.5)


@pytest.mark.parametrize("method", ["median", "gaussian"])
def test_smoothing_does_not_round_where_the_scan_ends(method: str) -> None:
    slab = block((0, 24), (0, 24), (0, 6))
    np.testing.assert_array_equal(after(slab, Smooth(2.0, method)), slab)


def test_holes_are_filled_in_3d_or_slice_by_slice() -> None:
    pipe = block((5, 17), (5, 17), (2, 10)) & ~block((9, 12), (9, 12), (0, 12))
    bubble = block((5, 17), (5, 17), (2, 10)) & ~block((9, 12), (9, 12), (4, 7))
    full = block((5, 17), (5, 17), (2, 10))
    np.testing.assert_array_equal(after(bubble, FillHoles()), full)
    np.testing.assert_array_equal(after(pipe, FillHoles()), pipe)
    np.testing.assert_array_equal(after(pipe, FillHoles(axis=2)), full)
    np.testing.assert_array_equal(after(pipe, FillHoles(axis=0)), pipe)


def test_one_component_is_kept() -> None:
    large, small = block((2, 9), (2, 9), (2, 9)), block((14, 18), (14, 18), (4, 7))
    both = large | small
    np.testing.assert_array_equal(after(both, KeepComponent()), large)
    np.testing.assert_array_equal(after(both, KeepComponent(Point.voxel((15, 15, 5)))), small)
    np.testing.assert_array_equal(after(both, KeepComponent(Point.world((20, 20, 10)))), small)


def test_corners_connect() -> None:
    touching = block((2, 5), (2, 5), (2, 5)) | block((5, 6), (5, 6), (5, 6))
    np.testing.assert_array_equal(after(touching, KeepComponent()), touching)


def test_parts_below_a_volume_are_removed() -> None:
    large, small = block((2, 9), (2, 9), (2, 7)), block((14, 15), (14, 19), (4, 6))  # 20 mm3
    both = large | small
    np.testing.assert_array_equal(after(both, RemoveSmall(0.02)), both)
    np.testing.assert_array_equal(after(both, RemoveSmall(0.021)), large)
    assert not after(both, RemoveSmall(1.0)).any()


def test_steps_are_taken_in_order_and_an_empty_mask_stays_empty() -> None:
    spiked = block((5, 17), (5, 17), (3, 9)) | block((17, 21), (10, 11), (6, 7))
    far = spiked | block((22, 24), (22, 24), (0, 1))
    smooth_first = after(far, Smooth(2.0), KeepComponent())
    np.testing.assert_array_equal(smooth_first, after(after(far, Smooth(2.0)), KeepComponent()))
    assert not after(block((0, 0), (0, 0), (0, 0)), Smooth(2.0), FillHoles(), KeepComponent()).any()


STEPS = [
    Smooth(1.5, "gaussian"),
    FillHoles(axis=2),
    KeepComponent(),
    KeepComponent(Point.world((1, 2, 1 / 3), "LPS")),
    RemoveSmall(0.3),
]


@pytest.mark.parametrize("step", STEPS)
def test_steps_go_through_json(step: object) -> None:
    assert step_from_plain(json.loads(json.dumps(step_to_plain(step)))) == step


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"kind": "polish"},
        {"kind": "smooth"},
        {"kind": "smooth", "radius_mm": -1, "method": "median"},
        {"kind": "smooth", "radius_mm": "1", "method": "median"},
        {"kind": "smooth", "radius_mm": 1e9, "method": "median"},
        {"kind": "smooth", "radius_mm": 1, "method": "mean"},
        {"kind": "fill_holes", "axis": 4},
        {"kind": "keep_component", "point": {"position": [1, 2], "frame": "RAS", "positive": True}},
        {"kind": "remove_small", "min_ml": 0},
        {"kind": "remove_small", "min_ml": 1, "more": 2},
        7,
    ],
)
def test_foreign_steps_are_refused(plain: object) -> None:
    with pytest.raises(ConfigError):
        step_from_plain(plain)
