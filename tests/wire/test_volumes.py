"""A volume that travels keeps its grid and its values to the last bit."""

import numpy as np
import pytest

from fastsam3d.io import read_volume
from fastsam3d.volume import Geometry, Volume
from fastsam3d.wire.volumes import volume_to_bytes

OBLIQUE = [
    [0.1 + 1 / 3, 0.2, 0, -7.1],
    [-0.2, 1 / 7, 0.1, 3],
    [0, 0.05, -1.3, 1e3 / 7],
    [0, 0, 0, 1],
]


@pytest.mark.parametrize("dtype", ["i1", "u1", ">i2", "<u2", "i4", "f4", ">f8", "f2", "?"])
def test_volumes_of_every_type_come_back_exactly(dtype, tmp_path):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    volume = Volume(array, Geometry(array.shape, OBLIQUE))
    (tmp_path / "sent").write_bytes(volume_to_bytes(volume))
    found = read_volume(tmp_path / "sent")
    assert found.geometry == volume.geometry
    np.testing.assert_array_equal(found.array, array.astype(array.dtype.newbyteorder("=")))
