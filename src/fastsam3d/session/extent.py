"""How a mask lies in its ROI: how large it is there, and whether a face cuts it off."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from fastsam3d.preprocess.roi import MASK_LOGIT_THRESHOLD, Roi, canonical_spacing, foreground
from fastsam3d.session.connected import connected_to

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from fastsam3d.session.scale import ScalePolicy
    from fastsam3d.volume import Geometry

    Points = NDArray[np.float64]

DROPPED_LOGIT = -1.0


@dataclass(frozen=True, kw_only=True)
class MaskExtent:
    """How a mask lies in its ROI.

    Attributes:
        start: Lower faces of the robust bounding box of the object at the clicks, ROI voxels.
        stop: Upper faces.
        num_cut_faces: Faces of the ROI that cut the mask off while the scan goes on beyond.
        has_click: Whether some positive click is in the mask, or there is none.
    """

    start: tuple[float, float, float] = (0.0, 0.0, 0.0)
    stop: tuple[float, float, float] = (0.0, 0.0, 0.0)
    num_cut_faces: int = 0
    has_click: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether there is no mask."""
        return self.largest == 0

    @property
    def largest(self) -> float:
        """Longest side of the bounding box, ROI voxels."""
        return max(high - low for low, high in zip(self.start, self.stop, strict=True))


def measure_mask(
    policy: ScalePolicy, geometry: Geometry, roi: Roi, logits_IJK: Tensor, clicks: Points
) -> MaskExtent:
    """Measure how a mask lies in its ROI.

    Args:
        policy: Trim and face contact.
        geometry: Grid of the volume.
        roi: ROI of the logits; its size is even.
        logits_IJK: Mask logits of the ROI.
        clicks: Positive clicks in ROI voxels, shape (N, 3); the extent is that of the connected
            parts that they hit, or of the whole mask where they hit none.
    """
    is_mask, num_cut_faces = _inside_scan(policy, geometry, roi, foreground(logits_IJK))
    half = _halved(is_mask)
    if not half.any():
        return MaskExtent()
    seeds = _half_seeds(clicks, half.shape)
    is_hit = half[tuple(seeds.T)]
    part = connected_to(half, seeds[is_hit]) if is_hit.any() else half
    (i0, i1), (j0, j1), (k0, k1) = _trimmed_ranges(part, policy.trim)
    return MaskExtent(
        start=(2 * i0 - 0.5, 2 * j0 - 0.5, 2 * k0 - 0.5),
        stop=(2 * i1 - 0.5, 2 * j1 - 0.5, 2 * k1 - 0.5),
        num_cut_faces=num_cut_faces,
        has_click=bool(is_hit.any()) or not len(clicks),
    )


def clicked_parts(logits_IJK: Tensor, clicks: Points) -> Tensor:
    """Turn the parts of a mask that hold no positive click into background.

    A user points at one object; what the mask has elsewhere without touching it is a slip. A click
    on a missed second part brings that part back.

    Args:
        logits_IJK: Mask logits of the ROI, or of several side by side.
        clicks: Positive clicks in voxels of the logits, shape (N, 3).

    Returns:
        The logits; the very same tensor where no click is in the mask or no other part there.
    """
    half = _halved(foreground(logits_IJK))
    seeds = _half_seeds(clicks, half.shape)
    seeds = seeds[half[tuple(seeds.T)]]
    if not len(seeds):
        return logits_IJK
    part = connected_to(half, seeds)
    if np.array_equal(part, half):  # as most often
        return logits_IJK
    part = part.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    part = part[tuple(slice(length) for length in logits_IJK.shape)]
    is_other = torch.as_tensor(~part, device=logits_IJK.device) & (
        logits_IJK > MASK_LOGIT_THRESHOLD
    )
    return logits_IJK.masked_fill(is_other, DROPPED_LOGIT)


def _halved(is_mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the mask at half the resolution: enough to tell parts, and eight times faster."""
    if any(length % 2 for length in is_mask.shape):
        is_mask = np.pad(is_mask, [(0, length % 2) for length in is_mask.shape])
    half = is_mask[::2] | is_mask[1::2]
    half = half[:, ::2] | half[:, 1::2]
    return half[:, :, ::2] | half[:, :, 1::2]


def _half_seeds(clicks: Points, shape: tuple[int, ...]) -> NDArray[np.intp]:
    return np.clip(np.floor((clicks + 0.5) / 2), 0, np.array(shape) - 1).astype(np.intp)


def scan_range(geometry: Geometry, roi: Roi) -> list[tuple[int, int]]:
    """Return for each axis the first and last ROI voxel in which scan voxels have their centres.

    Both may lie outside of the ROI.
    """
    shape = geometry.canonical_reorder().reordered_shape
    found: list[tuple[int, int]] = []
    for centre, spacing, length in zip(
        roi.centre_voxel, canonical_spacing(geometry), shape, strict=True
    ):
        ratio = spacing / roi.spacing_mm
        first, last = ((v - centre) * ratio + roi.size // 2 for v in (0, length - 1))
        found.append((math.ceil(first - 0.5), math.floor(last + 0.5)))
    return found


def _inside_scan(
    policy: ScalePolicy, geometry: Geometry, roi: Roi, is_mask: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], int]:
    """Return the mask without the ROI's padding, and how many faces cut it off."""
    shape = geometry.canonical_reorder().reordered_shape
    needed = max(1.0, policy.face_contact * roi.size**2)
    kept = np.zeros_like(is_mask)
    inside: list[slice] = []
    is_open: list[tuple[bool, bool]] = []
    for centre, spacing, length in zip(
        roi.centre_voxel, canonical_spacing(geometry), shape, strict=True
    ):
        ratio = spacing / roi.spacing_mm
        first, last = ((v - centre) * ratio + roi.size // 2 for v in (-0.5, length - 0.5))
        inside.append(slice(max(0, math.ceil(first)), max(0, min(roi.size, math.floor(last) + 1))))
        # Open: at least one voxel centre lies beyond the face.
        is_open.append((first + ratio / 2 < -0.5, last - ratio / 2 > roi.size - 0.5))
    box = inside[0], inside[1], inside[2]
    kept[box] = is_mask[box]
    num_cut_faces = 0
    for axis, sides in enumerate(is_open):
        for face, is_open_face in zip((0, -1), sides, strict=True):
            covered = int(np.count_nonzero(np.moveaxis(kept, axis, 0)[face]))
            num_cut_faces += is_open_face and covered >= needed
    return kept, num_cut_faces


def _trimmed_ranges(part: NDArray[np.bool_], trim: float) -> list[tuple[int, int]]:
    """Return for each axis the half-open range that holds all but a few voxels at its ends."""
    # The sums of wide numbers over single bits are slow, so those of planes are made of lines'.
    lines_JK = np.add.reduce(part.view(np.uint8), axis=0, dtype=np.uint16)
    planes = (
        np.array([np.count_nonzero(plane) for plane in part]),
        lines_JK.sum(axis=1, dtype=np.int64),
        lines_JK.sum(axis=0, dtype=np.int64),
    )
    return [_trimmed_range(np.cumsum(counts), trim) for counts in planes]


def _trimmed_range(cumulative: NDArray[np.int64], trim: float) -> tuple[int, int]:
    total = int(cumulative[-1])
    first = int(np.searchsorted(cumulative, trim * total, side="right"))
    last = int(np.searchsorted(cumulative, (1 - trim) * total, side="left"))
    return first, last + 1
