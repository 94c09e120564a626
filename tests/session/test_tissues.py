"""Tissues of a box: told apart by intensity, each with a middle in it."""

import numpy as np
import pytest

from fastsam3d.session import tissues
from fastsam3d.session.tissues import tissue_middles
from fastsam3d.volume import Geometry, Region, Volume

SHAPE = (24, 20, 16)
REGION = Region((2, 3, 4), (22, 17, 14))


def volume_of(array: np.ndarray) -> Volume:
    return Volume(array.astype(np.float32), Geometry(array.shape, np.eye(4)))


def three_layers() -> np.ndarray:
    array = np.full(SHAPE, 40.0)
    array[:9] = -800.0
    array[17:] = 600.0
    return array + np.random.default_rng(0).normal(0, 5, SHAPE)


@pytest.mark.parametrize("count", [2, 3])
def test_every_tissue_has_its_middle_within_itself_and_the_box(count):
    array = three_layers()
    middles = tissue_middles(volume_of(array), REGION, count)
    assert len(middles) == count
    found = [float(array[tuple(middle)]) for middle in middles]
    assert found == sorted(found)
    for middle in middles:
        assert np.all((middle >= REGION.start) & (middle < REGION.stop))
    if count == 3:
        np.testing.assert_allclose(found, (-800, 40, 600), atol=30)


def test_of_a_large_box_every_other_voxel_is_enough(monkeypatch):
    array = three_layers()
    monkeypatch.setattr(tissues, "MOST_VOXELS", int(np.prod(REGION.shape)) // 8)
    found = [float(array[tuple(m)]) for m in tissue_middles(volume_of(array), REGION, 3)]
    np.testing.assert_allclose(found, (-800, 40, 600), atol=30)


def test_of_a_box_beyond_the_volume_what_lies_within_counts():
    volume = volume_of(three_layers())
    within = tissue_middles(volume, Region((0, 3, 4), (24, 17, 16)), 3)
    beyond = tissue_middles(volume, Region((-5, 3, 4), (60, 17, 40)), 3)
    np.testing.assert_array_equal(within, beyond)
    assert len(within) == 3
    assert tissue_middles(volume, Region((-9, 3, 4), (-2, 17, 40)), 3) == []


def test_a_box_of_one_intensity_has_no_tissues_to_tell_apart():
    assert tissue_middles(volume_of(np.full(SHAPE, 7.0)), REGION, 3) == []


def test_a_box_of_two_intensities_has_no_third():
    array = np.zeros(SHAPE)
    array[12:] = 1.0
    assert len(tissue_middles(volume_of(array), REGION, 3)) == 2


def test_middles_are_the_same_each_time():
    volume = volume_of(np.random.default_rng(1).normal(size=SHAPE))
    first, second = (tissue_middles(volume, REGION, 3) for _ in range(2))
    np.testing.assert_array_equal(first, second)
