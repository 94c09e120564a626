"""Volumes and masks are checked once."""

import numpy as np
import pytest

from fastsam3d.errors import GeometryError, VolumeReadError
from fastsam3d.volume import Geometry, Mask, SourceHeader, Volume

GEOMETRY = Geometry((2, 3, 4), np.eye(4))


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
def test_a_volume_keeps_its_array(dtype: str) -> None:
    array = np.ones((2, 3, 4), dtype)
    volume = Volume(array, GEOMETRY)
    assert volume.array is array
    assert volume.shape == (2, 3, 4)
    assert "array" not in repr(volume)


def test_a_mask_remembers_the_header_of_its_volume() -> None:
    source = SourceHeader("itk", (1.0,))
    mask = Volume(np.zeros((2, 3, 4)), GEOMETRY, source=source).new_mask(np.ones((2, 3, 4), bool))
    assert mask.source is source
    assert mask.geometry is GEOMETRY
    assert mask.shape == (2, 3, 4)


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.full((2, 3, 4), fill_value=True), np.uint8),
        (np.full((2, 3, 4), 255, np.int64), np.uint8),
        (np.full((2, 3, 4), 256, np.int16), np.uint16),
        (np.full((2, 3, 4), 3.0), np.uint8),
        (np.full((2, 3, 4), 3, np.uint16), np.uint8),
    ],
)
def test_labels_take_the_smallest_type(array: np.ndarray, dtype: type) -> None:
    mask = Mask(array, GEOMETRY)
    assert mask.array.dtype == dtype
    np.testing.assert_array_equal(mask.array, array)


@pytest.mark.parametrize("kind", [Volume, Mask])
def test_shape_must_be_that_of_the_geometry(kind: type) -> None:
    with pytest.raises(GeometryError, match=r"must be 3-D, got shape \(2, 3, 4, 1\)"):
        kind(np.zeros((2, 3, 4, 1)), GEOMETRY)
    with pytest.raises(GeometryError, match=r"has shape \(4, 3, 2\) but its geometry \(2, 3, 4\)"):
        kind(np.zeros((4, 3, 2)), GEOMETRY)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_must_be_finite(value: float) -> None:
    array = np.zeros((2, 3, 4), np.float32)
    array[1, 2, 3] = value
    with pytest.raises(VolumeReadError, match="1 of 24 voxels that are NaN or infinite"):
        Volume(array, GEOMETRY)


def test_voxels_must_be_real_numbers() -> None:
    with pytest.raises(VolumeReadError, match="must hold real numbers, got complex128"):
        Volume(np.zeros((2, 3, 4), complex), GEOMETRY)


@pytest.mark.parametrize("value", [-1, 0.5, 65536, np.nan, 1j])
def test_labels_must_be_whole_numbers(value: complex) -> None:
    with pytest.raises(VolumeReadError, match="whole numbers of 0 to 65535"):
        Mask(np.full((2, 3, 4), value), GEOMETRY)
