"""A volume on the grid of another, by world coordinates: nothing is registered."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from fastsam3d.errors import GeometryError
from fastsam3d.volume import Volume

if TYPE_CHECKING:
    from fastsam3d.volume import Geometry

_OFF_GRID_VOXELS = 1e-3


def resample_volume(volume: Volume, geometry: Geometry) -> Volume:
    """Return a volume on another grid, interpolated linearly.

    Along axes on which the new voxels are wider, it is smoothed first, so that fine structure does
    not turn into noise. Beyond the volume's field of view it is as dark as its darkest voxel.

    Args:
        volume: What to resample, of any orientation.
        geometry: Grid of the result.

    Returns:
        float32, i fastest in memory as files have it, of the same modality and without the header
        of a file; the volume itself where the grids are one.

    Raises:
        GeometryError: No voxel of the new grid lies in the volume.
    """
    if volume.geometry.is_close(geometry):
        return volume
    matrix = np.linalg.inv(volume.geometry.affine) @ geometry.affine
    if not _overlap(matrix, volume, geometry):
        message = (
            f"No voxel of {geometry} lies in {volume.geometry}; the two images are of different "
            "places, or in different frames: register them first."
        )
        raise GeometryError(message)
    ndimage: Any = import_module("scipy.ndimage")
    # How far one step of the new grid goes along each axis of the old one, voxels.
    steps = np.abs(matrix[:3, :3]).max(axis=1)
    array = np.asarray(volume.array, np.float32)
    if (steps > 1).any():
        array = ndimage.gaussian_filter(array, np.maximum(steps - 1, 0) / 2, mode="nearest")
    found = np.empty(geometry.shape, np.float32, order="F")
    ndimage.affine_transform(
        array,
        matrix[:3, :3],
        matrix[:3, 3],
        output=found,
        order=1,
        mode="constant",
        cval=float(array.min()),
    )
    return Volume(found, geometry, volume.modality)


def _overlap(matrix: np.ndarray[Any, Any], volume: Volume, geometry: Geometry) -> bool:
    """Whether some voxel centre of a grid lies in a volume; `matrix` goes from grid to volume."""
    i, j, k = (np.arange(length) for length in geometry.shape)
    for plane in k:  # A plane at a time: large grids do not fit whole.
        index = np.stack(np.broadcast_arrays(i[:, None], j, plane), axis=-1)
        at = index @ matrix[:3, :3].T + matrix[:3, 3]
        is_in = (at >= -_OFF_GRID_VOXELS) & (at <= np.array(volume.shape) - 1 + _OFF_GRID_VOXELS)
        if is_in.all(axis=-1).any():
            return True
    return False
