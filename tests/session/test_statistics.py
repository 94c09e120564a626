"""Measurements of masks whose measures are known."""

import numpy as np
import pytest

from fastsam3d.session.object_mask import ObjectMask
from fastsam3d.session.statistics import measure_object
from fastsam3d.volume import Geometry, Volume

TURN = np.deg2rad(30)
ROTATED = np.array(
    [
        [np.cos(TURN), -np.sin(TURN), 0, 40],
        [np.sin(TURN), np.cos(TURN), 0, -9],
        [0, 0, 1, 5],
        [0, 0, 0, 1],
    ]
)


def measured(array: np.ndarray, affine: np.ndarray, values: np.ndarray | None = None):
    geometry = Geometry(array.shape, affine)
    intensities = np.arange(array.size, dtype=np.int16).reshape(array.shape)
    volume = Volume(intensities if values is None else values, geometry)
    return measure_object(ObjectMask.cropped(geometry.region, array), volume)


@pytest.mark.parametrize("affine", [np.eye(4), ROTATED])
def test_a_ball_measures_what_it_should(affine: np.ndarray) -> None:
    affine = affine @ np.diag([0.5, 0.8, 1.0, 1.0])
    index = np.moveaxis(np.indices((60, 40, 34)), 0, -1) * (0.5, 0.8, 1.0)
    ball = np.linalg.norm(index - (15.1, 15.6, 16.2), axis=-1) < 12
    found = measured(ball, affine)
    assert found.volume_ml == pytest.approx(4 / 3 * np.pi * 1.2**3, rel=0.01)
    assert found.longest.mm == pytest.approx(24, abs=1.0)
    assert found.axial.long.mm == pytest.approx(24, abs=0.8)
    assert found.axial.short_mm == pytest.approx(24, abs=0.8)
    assert found.axial.slice_index == 16
    assert np.linalg.norm(np.subtract(*found.longest.ends)) == pytest.approx(found.longest.mm)
    assert np.linalg.norm(np.subtract(*found.axial.long.ends)) == pytest.approx(found.axial.long.mm)


def test_an_ellipse_has_a_long_and_a_short_axis_across_it() -> None:
    i, j = np.indices((80, 80)) - 40.0
    turned = (i * np.cos(0.6) + j * np.sin(0.6), j * np.cos(0.6) - i * np.sin(0.6))
    array = np.zeros((80, 80, 3), bool)
    array[..., 1] = (turned[0] / 30) ** 2 + (turned[1] / 12) ** 2 < 1
    array[..., 2] = (turned[0] / 9) ** 2 + (turned[1] / 9) ** 2 < 1
    found = measured(array, np.eye(4)).axial
    assert found.slice_index == 1
    assert found.long.mm == pytest.approx(60, abs=1)
    assert found.short_mm == pytest.approx(24, abs=1)


def test_axial_slices_are_found_whatever_the_order_of_axes() -> None:
    array = np.zeros((5, 30, 30), bool)
    array[2, 4:25, 10:12] = True
    affine = np.array([[0, 0, -1, 9], [0, 1, 0, 0], [3, 0, 0, 0], [0, 0, 0, 1.0]])
    found = measured(array, affine)
    assert found.axial.slice_index == 2
    # Between middles of faces: 20.x along a bar of 21 x 2 voxels.
    assert 21 <= found.axial.long.mm < 21.2
    assert found.axial.short_mm == pytest.approx(2, abs=0.2)
    assert {round(end[2], 6) for end in found.axial.long.ends} == {6.0}


def test_a_single_voxel_is_a_voxel_long() -> None:
    array = np.zeros((3, 3, 3), bool)
    array[1, 1, 1] = True
    found = measured(array, np.diag([2.0, 3.0, 4.0, 1.0]))
    assert found.volume_ml == pytest.approx(0.024)
    assert found.longest.mm == pytest.approx(4)
    assert found.axial.long.mm == pytest.approx(3)


def test_intensities_are_those_under_the_mask() -> None:
    array = np.zeros((4, 4, 4), bool)
    array[1:3, 1:3, 1] = True
    values = np.full((4, 4, 4), 999, np.int16)
    values[1:3, 1:3, 1] = [[-4, 0], [4, 8]]
    found = measured(array, np.eye(4), values).intensity
    assert (found.mean, found.minimum, found.maximum) == (2, -4, 8)
    assert found.sd == pytest.approx(np.sqrt(20))
    assert found.percentiles == {
        p: pytest.approx(np.percentile([-4, 0, 4, 8], p)) for p in (5, 25, 50, 75, 95)
    }


def test_nothing_measures_nothing() -> None:
    found = measured(np.zeros((3, 3, 3), bool), np.eye(4))
    assert (found.num_voxels, found.volume_ml) == (0, 0)
    assert found.longest is found.axial is found.intensity is None
