"""The region of interest that the network sees: cut from a volume, and pasted back.

An ROI is a cube of isotropic voxels, axes parallel to the scan's own (no rotation), in the frame
of the *canonical* volume: the volume's axes permuted and flipped to be closest to RAS. So the same
anatomy gives the same ROI however its file is stored. ROI voxel `size // 2` along each axis lies
exactly on `Roi.centre_voxel`. Cutting and pasting touch only the ROI's box of the volume.

Shape legend: I J K axes, of the volume or of the ROI; S side of a cube of logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastsam3d.errors import GeometryError
from fastsam3d.preprocess.resample import (
    apply_taps,
    axis_matrix,
    linear_taps,
    resampling_taps,
)
from fastsam3d.volume import Region

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

    from fastsam3d.preprocess.resample import AxisTaps
    from fastsam3d.volume import Geometry

ROI_SIZE = 128
MASK_LOGIT_THRESHOLD = 0.0
# Logit of a mask prompt's inside (probability 0.998), and minus that outside of it.
MASK_PROMPT_LOGIT = 6.0


@dataclass(frozen=True)
class Roi:
    """A cube of isotropic voxels in the frame of a canonical volume.

    Attributes:
        centre_voxel: Where ROI voxel `size // 2` lies, voxels of the canonical volume.
        spacing_mm: Side of an ROI voxel.
        size: Voxels along each side.
        focus_voxel: Voxel of the canonical volume whose tissue is of interest, which a CT's window
            follows; None where nothing in particular is.

    Raises:
        GeometryError: A value is not finite, or not positive where it must be.
    """

    centre_voxel: tuple[float, float, float]
    spacing_mm: float
    size: int = ROI_SIZE
    focus_voxel: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        """Refuse what would give NaN positions later."""
        numbers = (*self.centre_voxel, self.spacing_mm, *(self.focus_voxel or ()))
        if not all(math.isfinite(value) for value in numbers):
            message = f"ROI must have a finite centre and spacing, got {self}; check the prompts."
            raise GeometryError(message)
        if self.spacing_mm <= 0 or self.size < 1:
            message = f"ROI must have a positive spacing and size, got {self}."
            raise GeometryError(message)

    @classmethod
    def around(
        cls, voxel: ArrayLike, geometry: Geometry, spacing_mm: float, size: int = ROI_SIZE
    ) -> Roi:
        """Return the ROI centred and focused on a voxel (3,) of the volume as stored."""
        i, j, k = geometry.canonical_reorder().apply_points(voxel).tolist()
        return cls((i, j, k), spacing_mm, size, (i, j, k))

    @property
    def side_mm(self) -> float:
        """Length of the cube's edges."""
        return self.size * self.spacing_mm


def canonical_spacing(geometry: Geometry) -> tuple[float, float, float]:
    """Return millimetres per voxel along the axes of the canonical volume."""
    a, b, c = geometry.canonical_reorder().permutation
    return geometry.spacing[a], geometry.spacing[b], geometry.spacing[c]


def voxel_to_roi(voxels: ArrayLike, geometry: Geometry, roi: Roi) -> NDArray[np.float64]:
    """Return ROI voxel coordinates of voxel coordinates of the volume as stored, both (..., 3)."""
    canonical = geometry.canonical_reorder().apply_points(voxels)
    scale = np.asarray(canonical_spacing(geometry)) / roi.spacing_mm
    return (canonical - roi.centre_voxel) * scale + roi.size // 2


def roi_to_voxel(points: ArrayLike, geometry: Geometry, roi: Roi) -> NDArray[np.float64]:
    """Return voxel coordinates of the volume as stored of ROI voxel coordinates, both (..., 3)."""
    scale = roi.spacing_mm / np.asarray(canonical_spacing(geometry))
    offsets = np.asarray(points, dtype=np.float64) - roi.size // 2
    return geometry.canonical_reorder().invert_points(offsets * scale + roi.centre_voxel)


def roi_region(geometry: Geometry, roi: Roi) -> Region:
    """Return the voxels of the volume as stored whose centres lie in the ROI."""
    reorder = geometry.canonical_reorder()
    ranges = [_voxels_between(-0.5, roi.size - 0.5, axis, geometry, roi) for axis in range(3)]
    return reorder.invert_region(_region(ranges))


def cut_roi(
    volume_IJK: Tensor | NDArray[Any], geometry: Geometry, roi: Roi
) -> tuple[Tensor, Tensor]:
    """Resample the ROI out of a volume.

    Each axis is interpolated linearly; where an ROI voxel is wider than 1.5 voxels of the volume,
    the interpolated volume is averaged over it. Padding outside of the scan repeats the scan's
    outermost voxels.

    Args:
        volume_IJK: Finite intensities of any real type and memory order, axes as stored.
        geometry: Grid of the volume.
        roi: What to cut.

    Returns:
        Intensities, float32, shape (1, 1, size, size, size), RAS-canonical axes, and whether each
        ROI voxel's centre lies inside the scan, bool, same shape; on the volume's device.

    Raises:
        GeometryError: The array's shape is not the geometry's.
    """
    return _cut(volume_IJK, geometry, roi, is_mask=False)


def _cut(
    volume_IJK: Tensor | NDArray[Any], geometry: Geometry, roi: Roi, *, is_mask: bool
) -> tuple[Tensor, Tensor]:
    """As `cut_roi`; of a mask, whether a voxel is not zero is resampled in place of its value."""
    if tuple(volume_IJK.shape) != geometry.shape:
        message = (
            f"Volume must have its geometry's shape {geometry.shape}, "
            f"got {tuple(volume_IJK.shape)}; give the array in i, j, k order."
        )
        raise GeometryError(message)
    reorder = geometry.canonical_reorder()
    taps = _cutting_taps(geometry, roi)
    stored: list[AxisTaps] = [taps[0]] * 3
    for axis, source in enumerate(reorder.permutation):
        length = geometry.shape[source]
        stored[source] = taps[axis].mirrored(length) if reorder.flips[axis] else taps[axis]
    tensor, stored = _as_tensor(volume_IJK, stored, is_mask=is_mask)
    image = apply_taps(tensor, stored).permute(reorder.permutation).contiguous()
    inside = [torch.as_tensor(axis_taps.inside).to(image.device) for axis_taps in taps]
    valid = inside[0][:, None, None] & inside[1][:, None] & inside[2]
    return image[None, None], valid[None, None]


def paste_logits(
    logits_IJK: Tensor, geometry: Geometry, roi: Roi, *, start: tuple[int, int, int] = (0, 0, 0)
) -> tuple[Region, NDArray[np.uint8]]:
    """Turn ROI logits into a binary mask on the volume's own grid.

    Logits are interpolated linearly at the voxel centres and thresholded; voxels outside of the
    logits are background. Only the part that can be foreground is computed.

    Args:
        logits_IJK: Mask logits, float, any shape (that of the ROI unless they reach beyond it),
            any device.
        geometry: Grid of the volume, axes as stored.
        roi: The grid of the logits.
        start: ROI voxel of the first logit.

    Returns:
        The smallest computed region, inside the volume (empty without foreground), and the mask
        in it, shape `region.shape`; everything outside of the region is background.
    """
    reorder = geometry.canonical_reorder()
    taps: list[AxisTaps] = []
    ranges: list[tuple[int, int]] = []
    for axis, is_hit in enumerate(_planes_with_any(logits_IJK)):
        hits = np.flatnonzero(is_hit)
        if not hits.size:
            return Region((0, 0, 0), (0, 0, 0)), np.zeros((0, 0, 0), np.uint8)
        # Interpolation reaches one ROI voxel beyond the outermost foreground, no further.
        length, first = logits_IJK.shape[axis], start[axis]
        low, high = max(float(hits[0]) - 1, -0.5), min(float(hits[-1]) + 1, length - 0.5)
        voxels = range(*_voxels_between(low + first, high + first, axis, geometry, roi))
        ranges.append((voxels.start, voxels.stop))
        taps.append(linear_taps(_roi_positions(voxels, axis, geometry, roi) - first, length))
    region = reorder.invert_region(_region(ranges)).clip(geometry.shape)
    if region.is_empty:
        return Region((0, 0, 0), (0, 0, 0)), np.zeros((0, 0, 0), np.uint8)
    inverse = reorder.inverse
    # In the order of the stored axes, so that the result is written in memory order.
    stored = [taps[axis] for axis in inverse.permutation]
    logits = logits_IJK.detach().to("cpu", torch.float32).permute(inverse.permutation)
    mask = _interpolate_and_threshold(logits, stored)
    flipped = tuple(axis for axis in range(3) if inverse.flips[axis])
    return region, np.flip(mask, flipped)


def foreground(logits: Tensor) -> NDArray[np.bool_]:
    """Return where logits are those of foreground; any float type, shape and device."""
    if logits.device.type != "cpu":
        return (logits > MASK_LOGIT_THRESHOLD).cpu().numpy()
    # numpy compares seven times as fast on one core.
    return logits.detach().to(torch.float32).numpy() > np.float32(MASK_LOGIT_THRESHOLD)


def paste_values(
    values_IJK: Tensor, geometry: Geometry, roi: Roi, region: Region
) -> NDArray[np.float32]:
    """Interpolate numbers of an ROI linearly at the voxels of a box of the volume.

    Args:
        values_IJK: Numbers of the ROI, shape (size, size, size), any device.
        geometry: Grid of the volume, axes as stored.
        roi: Where the numbers belong; beyond its outermost voxels these are repeated.
        region: Box inside the volume.

    Returns:
        float32, shape `region.shape`.
    """
    reorder = geometry.canonical_reorder()
    box, inverse = reorder.apply_region(region), reorder.inverse
    taps = [
        linear_taps(_roi_positions(range(start, stop), axis, geometry, roi), roi.size)
        for axis, (start, stop) in enumerate(zip(box.start, box.stop, strict=True))
    ]
    values = values_IJK.detach().to("cpu", torch.float32).permute(inverse.permutation)
    pasted = apply_taps(values, [taps[axis] for axis in inverse.permutation]).numpy()
    return np.flip(pasted, tuple(axis for axis in range(3) if inverse.flips[axis])).copy()


def resample_logits(logits_SSS: Tensor, geometry: Geometry, source: Roi, target: Roi) -> Tensor:
    """Carry logits over from one ROI to another, as a mask prompt.

    Args:
        logits_SSS: Logits over the source ROI, shape (S, S, S); S may be smaller than the ROI's
            size, a logit then stands for a cube of ROI voxels.
        geometry: Grid of the volume.
        source: ROI of the logits.
        target: ROI of the result.

    Returns:
        float32, shape (S, S, S); minus `MASK_PROMPT_LOGIT` outside of the source ROI.
    """
    size = logits_SSS.shape[0]
    source_step, target_step = source.size / size, target.size / size
    offset = np.asarray(target.centre_voxel) - np.asarray(source.centre_voxel)
    shift = offset * canonical_spacing(geometry)
    ratio = target.spacing_mm * target_step / (source.spacing_mm * source_step)
    # Millimetres from the target's centre; a logit sits in the middle of its cube.
    target_mm = (_cube_centres(size, target_step) - target.size // 2) * target.spacing_mm
    taps: list[AxisTaps] = []
    for axis in range(3):
        position = (target_mm + shift[axis]) / source.spacing_mm + source.size // 2
        taps.append(resampling_taps((position + 0.5) / source_step - 0.5, ratio, size))
    result = apply_taps(logits_SSS, taps)
    inside = [torch.as_tensor(axis_taps.inside).to(result.device) for axis_taps in taps]
    is_known = inside[0][:, None, None] & inside[1][:, None] & inside[2]
    return torch.where(is_known, result, -MASK_PROMPT_LOGIT)


def mask_to_logits(mask_IJK: NDArray[Any], geometry: Geometry, roi: Roi, *, size: int) -> Tensor:
    """Turn a binary mask on the volume's grid into the logits of a mask prompt.

    Args:
        mask_IJK: Foreground where not zero, axes as stored, shape `geometry.shape`.
        geometry: Grid of the mask.
        roi: ROI of the result.
        size: Side of the cube of logits; divides `roi.size`.

    Returns:
        float32, shape (size, size, size), between plus and minus `MASK_PROMPT_LOGIT` in
        proportion to how much of a logit's cube is foreground.
    """
    share, valid = _cut(mask_IJK, geometry, roi, is_mask=True)
    share = torch.where(valid, share, 0.0)
    step = roi.size // size
    if step > 1:
        share = torch.nn.functional.avg_pool3d(share, step)
    return (2.0 * share[0, 0] - 1.0) * MASK_PROMPT_LOGIT


def _planes_with_any(logits_IJK: Tensor) -> list[NDArray[np.bool_]]:
    """Return for each axis which of its planes have any foreground."""
    if logits_IJK.device.type != "cpu":
        is_mask = logits_IJK > MASK_LOGIT_THRESHOLD
        planes = ([a for a in range(3) if a != axis] for axis in range(3))
        return [is_mask.sum(others).gt(0).cpu().numpy() for others in planes]
    # numpy looks at many booleans at once, which torch counts one by one.
    array = foreground(logits_IJK)
    seen_JK: NDArray[np.bool_] = np.any(array, axis=0)
    return [np.any(array, axis=(1, 2)), np.any(seen_JK, axis=1), np.any(seen_JK, axis=0)]


def _cube_centres(size: int, step: float) -> NDArray[np.float64]:
    return (np.arange(size, dtype=np.float64) + 0.5) * step - 0.5


def _cutting_taps(geometry: Geometry, roi: Roi) -> list[AxisTaps]:
    """Return the operators from the canonical volume to the ROI."""
    shape = geometry.canonical_reorder().reordered_shape
    offsets = np.arange(roi.size, dtype=np.float64) - roi.size // 2
    taps: list[AxisTaps] = []
    for centre, spacing, length in zip(
        roi.centre_voxel, canonical_spacing(geometry), shape, strict=True
    ):
        ratio = roi.spacing_mm / spacing
        taps.append(resampling_taps(centre + offsets * ratio, ratio, length))
    return taps


def _voxels_between(
    low: float, high: float, axis: int, geometry: Geometry, roi: Roi
) -> tuple[int, int]:
    """Return the canonical voxels [start, stop) whose centres lie in [low, high] of the ROI."""
    scale = roi.spacing_mm / canonical_spacing(geometry)[axis]
    length = geometry.canonical_reorder().reordered_shape[axis]
    start, stop = (
        (value - roi.size // 2) * scale + roi.centre_voxel[axis] for value in (low, high)
    )
    return max(0, math.ceil(start)), min(length, math.floor(stop) + 1)


def _roi_positions(voxels: range, axis: int, geometry: Geometry, roi: Roi) -> NDArray[np.float64]:
    scale = canonical_spacing(geometry)[axis] / roi.spacing_mm
    return (np.asarray(voxels, np.float64) - roi.centre_voxel[axis]) * scale + roi.size // 2


def _region(ranges: Sequence[tuple[int, int]]) -> Region:
    (i0, i1), (j0, j1), (k0, k1) = ranges
    return Region((i0, j0, k0), (i1, j1, k1))


def _as_tensor(
    volume_IJK: Tensor | NDArray[Any], taps: list[AxisTaps], *, is_mask: bool
) -> tuple[Tensor, list[AxisTaps]]:
    """Return the box that the taps read as a tensor, and the taps for that box."""
    if not isinstance(volume_IJK, np.ndarray):
        return volume_IJK, taps
    spans = [axis_taps.span for axis_taps in taps]
    box = volume_IJK[tuple(slice(low, high) for low, high in spans)]
    if is_mask:
        box = (box != 0).view(np.uint8)
    # torch cannot alias negative strides and warns of read-only memory.
    if not box.flags.writeable or min(box.strides) < 0:
        box = box.copy(order="K")
    local = [t.shifted(-low) for t, (low, _) in zip(taps, spans, strict=True)]
    return torch.as_tensor(box), local


def _interpolate_and_threshold(logits_IJK: Tensor, taps: Sequence[AxisTaps]) -> NDArray[np.uint8]:
    first, second, third = taps
    spans = [axis_taps.span for axis_taps in taps]
    box = logits_IJK[tuple(slice(low, high) for low, high in spans)]
    first, second, third = (t.shifted(-low) for t, (low, _) in zip(taps, spans, strict=True))
    rows = box @ axis_matrix(third, box.shape[2])
    planes = _interpolate_second_axis(rows, second)
    mask = np.empty((len(first.index), *planes.shape[1:]), np.bool_)
    buffer = torch.empty(planes.shape[1:])
    threshold = np.float32(MASK_LOGIT_THRESHOLD)
    for n, ((low, high), (_, fraction)) in enumerate(
        zip(first.index.tolist(), first.weights.tolist(), strict=True)
    ):
        torch.lerp(planes[low], planes[high], fraction, out=buffer)
        np.greater(buffer.numpy(), threshold, out=mask[n])
    return mask.view(np.uint8)


def _interpolate_second_axis(rows: Tensor, taps: AxisTaps) -> Tensor:
    """Interpolate linearly along axis 1 of (I, J, K)."""
    low = rows.index_select(1, torch.as_tensor(taps.index[:, 0]))
    high = rows.index_select(1, torch.as_tensor(taps.index[:, 1]))
    return torch.lerp(low, high, torch.as_tensor(taps.weights[:, 1, None]))
