"""A volume on another grid: the same world, whatever the grids."""

import numpy as np
import pytest

from fastsam3d.errors import GeometryError
from fastsam3d.preprocess.regrid import resample_volume
from fastsam3d.volume import Geometry, Volume

SHAPE = (24, 20, 16)


def ramp(geometry: Geometry) -> Volume:
    """Return a volume whose intensity is a linear function of the world."""
    index = np.moveaxis(np.indices(geometry.shape), 0, -1)
    world = geometry.voxel_to_world(index.reshape(-1, 3)).reshape(*geometry.shape, 3)
    return Volume((world @ [2.0, -3.0, 5.0] + 7).astype(np.float32), geometry, "MR")


def oblique() -> Geometry:
    turn = np.deg2rad(20)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    affine[:3, :3] = affine[:3, :3] @ np.diag([1.0, 1.2, 1.5])
    affine[:3, 3] = (-9, -8, -10)
    return Geometry(SHAPE, affine)


@pytest.mark.parametrize(
    "affine",
    [
        pytest.param(np.diag([0.5, 0.5, 0.5, 1]), id="finer"),
        pytest.param(np.diag([-0.8, 0.9, 1.1, 1]), id="flipped"),
        pytest.param(np.diag([1.0, 1.0, 4.0, 1]), id="coarser"),
    ],
)
def test_what_is_linear_in_the_world_stays_so(affine):
    source = ramp(oblique())
    target = Geometry((5, 4, 3), affine)
    found = resample_volume(source, target)
    assert found.geometry == target
    assert (found.array.dtype, found.modality) == (np.float32, "MR")
    inside = slice(0, 2), slice(0, 2), slice(0, 1)
    np.testing.assert_allclose(found.array[inside], ramp(target).array[inside], atol=0.02)


def test_the_same_grid_is_left_alone():
    source = ramp(oblique())
    assert resample_volume(source, oblique()) is source


def test_there_and_back_gives_whole_voxels_again():
    values = np.random.default_rng(0).integers(0, 99, SHAPE).astype(np.int16)
    source = Volume(values, Geometry(SHAPE, np.eye(4)))
    flipped = np.diag([-1.0, 1, 1, 1])
    flipped[0, 3] = SHAPE[0] - 1
    there = resample_volume(source, Geometry(SHAPE, flipped))
    np.testing.assert_array_equal(there.array, values[::-1])
    np.testing.assert_array_equal(resample_volume(there, source.geometry).array, values)


def test_beyond_the_field_of_view_it_is_as_dark_as_the_darkest_voxel():
    values = np.full(SHAPE, 5, np.int16)
    values[3, 3, 3] = -1000
    source = Volume(values, Geometry(SHAPE, np.eye(4)))
    wide = resample_volume(source, Geometry((60, 60, 60), np.eye(4)))
    np.testing.assert_array_equal(wide.array[:24, :20, :16], values)
    assert np.unique(wide.array[24:]).tolist() == [-1000.0]


def test_noise_is_averaged_where_voxels_become_wider():
    noise = np.random.default_rng(0).normal(0, 1, (32, 32, 32)).astype(np.float32)
    source = Volume(noise, Geometry(noise.shape, np.eye(4)))
    wide = resample_volume(source, Geometry((8, 8, 8), np.diag([4.0, 4, 4, 1])))
    assert wide.array.std() < 0.2


def test_images_of_different_places_are_refused():
    far = np.eye(4)
    far[0, 3] = 500
    with pytest.raises(GeometryError, match="register them first"):
        resample_volume(ramp(oblique()), Geometry(SHAPE, far))
