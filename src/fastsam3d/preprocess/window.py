"""The window of intensities through which a model sees a CT: around what was clicked.

Across a whole body a CT spans 2,000 Hounsfield units and more, so that organs, which differ by
tens, look alike. Whoever reads one sets a window to the tissue of interest; a click says which.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastsam3d.preprocess.roi import canonical_spacing
from fastsam3d.volume import Region

if TYPE_CHECKING:
    from fastsam3d.preprocess.roi import Roi
    from fastsam3d.volume import Volume

# The tissue is the median of the voxels so near to the focus, along each axis.
FOCUS_REACH_MM = 4.0


def ct_window(volume: Volume, roi: Roi, half_width_hu: float) -> tuple[float, float] | None:
    """Return the intensities between which an ROI is shown.

    The window is centred on the tissue at the ROI's focus, and reaches at least to water: air and
    bone are told from what surrounds them by much more than organs are.

    Args:
        volume: The scan.
        roi: What is shown of it.
        half_width_hu: Half of the window's width for soft tissue.

    Returns:
        The lowest and the highest intensity, in Hounsfield units; None for all of them: of a scan
        that is no CT, and of an ROI without a focus.
    """
    if roi.focus_voxel is None or not volume.is_hounsfield:
        return None
    region = _around(volume, roi.focus_voxel)
    tissue = float(np.median(volume.array[region.slices]))
    half_width = max(half_width_hu, abs(tissue))
    return tissue - half_width, tissue + half_width


def _around(volume: Volume, focus_voxel: tuple[float, float, float]) -> Region:
    """Return the voxels within `FOCUS_REACH_MM` of a canonical voxel; the nearest in any case."""
    reorder = volume.geometry.canonical_reorder()
    shape = np.asarray(reorder.reordered_shape)
    nearest = np.clip(np.rint(focus_voxel), 0, shape - 1)
    reach = np.floor(FOCUS_REACH_MM / np.asarray(canonical_spacing(volume.geometry)))
    start = np.maximum(nearest - reach, 0).astype(int).tolist()
    stop = np.minimum(nearest + reach + 1, shape).astype(int).tolist()
    return reorder.invert_region(Region(tuple(start), tuple(stop)))
