"""Where the middle of a set of voxels is: the place that a user would click."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastsam3d.volume import Geometry, Region

    Voxels = NDArray[np.int64]


def middle_voxel(voxels: Voxels, geometry: Geometry) -> Voxels:
    """Return the voxel deepest in the largest connected part, of equals that nearest its centre.

    Args:
        voxels: A set of voxels, shape (N, 3), N at least 1.
        geometry: Grid of the volume.
    """
    ndimage: Any = import_module("scipy.ndimage")
    low = voxels.min(axis=0)
    inside = np.zeros(voxels.max(axis=0) - low + 1, np.bool_)
    inside[tuple((voxels - low).T)] = True
    labels, _ = ndimage.label(inside, structure=np.ones((3, 3, 3)))
    of_voxels = labels[tuple((voxels - low).T)]
    part = voxels[of_voxels == np.bincount(of_voxels).argmax()]
    depth = depth_mm(part, geometry)
    deepest = part[depth >= depth.max() * (1 - 1e-6)]
    at_mm = deepest * np.asarray(geometry.spacing)
    # Whole micrometres: noise of a last bit must not decide between equals.
    from_centre = np.linalg.norm(at_mm - at_mm.mean(axis=0), axis=1).round(3)
    return deepest[from_centre.argmin()]


def central_voxel(part: NDArray[np.bool_], region: Region) -> NDArray[np.float64]:
    """Return the voxel of a mask that is nearest to the middle of its box.

    Args:
        part: The mask in the box, with at least one voxel.
        region: The box.
    """
    middle = (np.array(part.shape) - 1) / 2
    voxels = np.argwhere(part)
    nearest = voxels[np.square(voxels - middle).sum(1).argmin()]
    return np.asarray(nearest + region.start, np.float64)


def depth_mm(voxels: Voxels, geometry: Geometry) -> NDArray[np.float64]:
    """Return how deep each voxel of a set lies in it, mm; a flat set counts along its plane."""
    ndimage: Any = import_module("scipy.ndimage")
    flat = int(np.argmin(np.ptp(voxels, axis=0)))
    low = voxels.min(axis=0) - 1
    inside = np.zeros(voxels.max(axis=0) - low + 2, np.bool_)
    inside[tuple((voxels - low).T)] = True
    if np.ptp(voxels[:, flat]) > 0:
        depth = ndimage.distance_transform_edt(inside, sampling=geometry.spacing)
        return depth[tuple((voxels - low).T)]
    spacing = np.delete(geometry.spacing, flat)
    depth = ndimage.distance_transform_edt(inside.any(axis=flat), sampling=spacing)
    return depth[tuple(np.delete(voxels - low, flat, axis=1).T)]
