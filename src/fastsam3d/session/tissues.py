"""The tissues in a box, told apart by intensity, and where a user would click each of them."""

from __future__ import annotations

import math
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from fastsam3d.session.middle import middle_voxel
from fastsam3d.volume import Geometry, Region

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastsam3d.volume import Volume

MOST_VOXELS = 1_000_000  # of a box that are looked at; of a larger one every other, third, ...
MOST_VALUES = 20_000  # of those, from which its tissues are found


def tissue_middles(volume: Volume, region: Region, count: int) -> list[NDArray[np.int64]]:
    """Return the middle of each tissue of a box, voxels of the volume as stored, (3,) each.

    Tissues are the clusters that k-means finds in the box's intensities (scipy), darkest first,
    beginning with equal shares of the voxels, or of the range where most are alike; a cluster that
    loses all its voxels is left out.

    Args:
        volume: The scan.
        region: The box; what reaches beyond the volume is left out.
        count: How many tissues to tell apart, at least two.
    """
    kmeans: Any = import_module("scipy.cluster.vq").kmeans
    region = region.intersection(Region((0, 0, 0), volume.geometry.shape))
    if region.is_empty:
        return []
    step = int(np.ceil((math.prod(region.shape) / MOST_VOXELS) ** (1 / 3)))
    values = np.asarray(volume.array[region.slices][::step, ::step, ::step], np.float32)
    coarse = Geometry(values.shape, volume.geometry.affine @ np.diag([step, step, step, 1]))
    low, high = np.percentile(values, (1, 99))  # metal and noise make no tissue of their own
    values = np.clip(values, low, high)
    if not high > low:
        return []
    sample = values.ravel()[:: max(1, values.size // MOST_VALUES)]
    begin = np.unique(np.quantile(sample, (np.arange(count) + 0.5) / count))
    if len(begin) < 2:
        begin = np.linspace(low, high, count, dtype=np.float32)
    centres = np.sort(kmeans(sample, begin)[0])
    tissue = np.digitize(values, (centres[1:] + centres[:-1]) / 2)
    found = (np.argwhere(tissue == number) for number in range(len(centres)))
    return [
        middle_voxel(voxels, coarse) * step + np.array(region.start)
        for voxels in found
        if len(voxels)
    ]
