"""A box of a volume on a grid of bounded size, so that classical methods answer in seconds.

Blocks of voxels are averaged until the box has few enough of them; results are brought back by
linear interpolation between block centres. Shape legend: I, J, K voxels of the file in the box;
U, V, W blocks.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fastsam3d.errors import ConfigError
from fastsam3d.eval.baselines.base import Baseline, Clicks, LocalMask, foreground_box
from fastsam3d.volume import Region

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fastsam3d.volume import Volume

LOW_PERCENTILE, HIGH_PERCENTILE = 0.5, 99.5
OBJECT_SEED, BACKGROUND_SEED = 1, 2


@dataclass(frozen=True, eq=False, kw_only=True)
class WorkBox:
    """Block means of a box of the volume.

    Attributes:
        region: The box, inside the volume.
        factors: Voxels per block along i, j, k.
        array: Means, scaled so that the box's bulk lies in 0 to 1; float32 (U, V, W).
        spacing: Sides of a block in mm.
        is_open: Per axis, whether the volume goes on below and above the box.
    """

    region: Region
    factors: tuple[int, int, int]
    array: NDArray[np.float32]
    spacing: tuple[float, float, float]
    is_open: tuple[tuple[bool, bool], ...]

    def blocks_of(self, voxels: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return the blocks (N, 3) of voxels (N, 3) of the volume; those outside are left out."""
        start, stop = np.array(self.region.start), np.array(self.region.stop)
        inside = ((voxels >= start) & (voxels < stop)).all(axis=1)
        return (voxels[inside] - start) // np.array(self.factors)

    def ball(self, block: NDArray[np.intp], radius_mm: float) -> NDArray[np.bool_]:
        """Return which blocks (U, V, W) lie within a distance of one; at least itself."""
        squared: NDArray[np.float64] = np.zeros((1, 1, 1))
        for axis, (count, side) in enumerate(zip(self.array.shape, self.spacing, strict=True)):
            along = [1, 1, 1]
            along[axis] = -1
            offsets = (np.arange(count, dtype=np.float64) - float(block[axis])) * side
            squared = squared + (offsets**2).reshape(along)
        return squared <= radius_mm**2

    def rim(self) -> NDArray[np.bool_]:
        """Return the blocks at faces beyond which the volume goes on; at all faces if none is."""
        rim = np.zeros(self.array.shape, dtype=np.bool_)
        is_closed = not any(any(pair) for pair in self.is_open)
        for axis, pair in enumerate(self.is_open):
            for face, is_open in zip((0, -1), pair, strict=True):
                if is_open or (is_closed and self.array.shape[axis] > 1):
                    np.moveaxis(rim, axis, 0)[face] = True
        return rim

    def voxels_of(self, field: NDArray[Any]) -> NDArray[np.bool_]:
        """Return where a field (U, V, W) exceeds one half, on the voxels (I, J, K) of the box."""
        if self.factors == (1, 1, 1):
            return np.asarray(field > 0.5)
        from scipy import ndimage  # noqa: PLC0415 - late, as all heavy imports here

        factors = np.array(self.factors)
        fine = cast("Any", ndimage).affine_transform(
            field.astype(np.float32),
            1.0 / factors,
            offset=0.5 / factors - 0.5,
            output_shape=self.region.shape,
            order=1,
            mode="nearest",
        )
        return np.asarray(fine > 0.5)


def cut_workbox(volume: Volume, region: Region, max_blocks: int) -> WorkBox:
    """Cut a box of a volume and average it down to a bounded number of blocks.

    Args:
        volume: The volume.
        region: Box inside of it, not empty.
        max_blocks: At most so many blocks; the shortest side is lengthened first.
    """
    sides = volume.geometry.spacing
    factors = [1, 1, 1]
    while math.prod(_num_blocks(region.shape, factors)) > max_blocks:
        lengths = [f * side for f, side in zip(factors, sides, strict=True)]
        factors[min((0, 1, 2), key=lambda axis: lengths[axis])] += 1
    array = _block_means(volume.array[region.slices], factors)
    low, high = (float(v) for v in np.percentile(array, [LOW_PERCENTILE, HIGH_PERCENTILE]))
    scale = 1.0 / (high - low) if high > low else 1.0
    return WorkBox(
        region=region,
        factors=cast("tuple[int, int, int]", tuple(factors)),
        array=((array - low) * scale).clip(-0.5, 1.5).astype(np.float32),
        spacing=cast("Any", tuple(f * side for f, side in zip(factors, sides, strict=True))),
        is_open=tuple(
            (low > 0, high < count)
            for low, high, count in zip(region.start, region.stop, volume.shape, strict=True)
        ),
    )


class BoxBaseline(Baseline):
    """A baseline that looks at a box around the clicks: coarsely first, then where it found it.

    The box reaches `reach_mm` beyond the positive clicks (or half a box prompt's side beyond the
    box). Where that is too large for `max_blocks`, a second look at the found object alone takes
    finer blocks.

    Attributes:
        reach_mm: How far from a positive click the object can be.
        max_blocks: Size of the grid to work on.
        margin: Part of the found object's extent that is added on each side for the second look.
    """

    reach_mm = 60.0
    max_blocks = 400_000
    margin = 0.15

    @abstractmethod
    def _field(
        self, work: WorkBox, positive: NDArray[np.intp], negative: NDArray[np.intp]
    ) -> NDArray[Any]:
        """Return a field (U, V, W), above one half on the object, for clicked blocks (N, 3)."""

    def _segment(self, volume: Volume, clicks: Clicks) -> LocalMask:
        looked = region = self._around(volume, clicks)
        work = cut_workbox(volume, region, self.max_blocks)
        mask = self._solve(work, clicks)
        if work.factors != (1, 1, 1) and mask.any():
            closer = self._closer(work, mask).clip(volume.shape)
            fine = cut_workbox(volume, closer, self.max_blocks)
            if max(fine.spacing) < max(work.spacing):
                region, work, mask = closer, fine, self._solve(fine, clicks)
        return LocalMask(
            region=region, array=mask, looked=looked, spacing_mm=float(max(work.spacing))
        )

    def _around(self, volume: Volume, clicks: Clicks) -> Region:
        sides = np.array(volume.geometry.spacing)
        voxels = clicks.positive
        if clicks.box is not None:
            half = np.array(clicks.box.shape) / 2
            low, high = clicks.box.start - half, clicks.box.stop + half
        else:
            reach = self.reach_mm / sides
            low, high = voxels.min(axis=0) - reach, voxels.max(axis=0) + reach + 1
        start, stop = np.floor(low).astype(int), np.ceil(high).astype(int)
        return Region(start.tolist(), stop.tolist()).clip(volume.shape)

    def _closer(self, work: WorkBox, mask: NDArray[np.bool_]) -> Region:
        found = foreground_box(mask).shift(work.region.start)
        extra = np.ceil(self.margin * np.array(found.shape)).astype(int) + 2 * np.array(
            work.factors
        )
        return Region((found.start - extra).tolist(), (found.stop + extra).tolist())

    def _solve(self, work: WorkBox, clicks: Clicks) -> NDArray[np.bool_]:
        positive = work.blocks_of(clicks.positive)
        if not len(positive):
            return np.zeros(work.region.shape, dtype=np.bool_)
        mask = work.voxels_of(self._field(work, positive, work.blocks_of(clicks.negative)))
        if clicks.box is not None:
            kept = np.zeros_like(mask)
            inside = clicks.box.intersection(work.region).shift([-n for n in work.region.start])
            kept[inside.slices] = mask[inside.slices]
            mask = kept
        return mask


def import_segmentation() -> Any:
    """Return `skimage.segmentation`, loaded at first use.

    Raises:
        ConfigError: scikit-image is not installed.
    """
    try:
        from skimage import segmentation  # noqa: PLC0415 - takes a second
    except ImportError as error:
        message = 'This baseline needs scikit-image; run pip install "fastsam3d[eval]".'
        raise ConfigError(message) from error
    return segmentation


def plant_seeds(
    work: WorkBox, positive: NDArray[np.intp], negative: NDArray[np.intp], radius_mm: float
) -> NDArray[np.int32]:
    """Return seeds (U, V, W): balls around clicks, and the rim of the box as background.

    Balls of positive clicks win over those of negative ones, and a clicked block keeps its sign.

    Args:
        work: The grid.
        positive: Blocks clicked as object, (N, 3).
        negative: Blocks clicked as background, (N, 3).
        radius_mm: Of the balls.

    Returns:
        `OBJECT_SEED`, `BACKGROUND_SEED` or 0.
    """
    seeds = np.zeros(work.array.shape, dtype=np.int32)
    seeds[work.rim()] = BACKGROUND_SEED
    for blocks, seed in ((negative, BACKGROUND_SEED), (positive, OBJECT_SEED)):
        for block in blocks:
            seeds[work.ball(block, radius_mm)] = seed
    seeds[tuple(negative.T)] = BACKGROUND_SEED
    seeds[tuple(positive.T)] = OBJECT_SEED
    return seeds


def _num_blocks(shape: Sequence[int], factors: Sequence[int]) -> list[int]:
    return [-(-count // factor) for count, factor in zip(shape, factors, strict=True)]


def _block_means(array: NDArray[Any], factors: Sequence[int]) -> NDArray[np.float32]:
    """Average blocks; the last of an axis may be made up by repeating its last voxel."""
    means = np.ascontiguousarray(array)
    for axis, factor in enumerate(factors):
        count = means.shape[axis]
        if factor == 1:
            continue
        missing = -count % factor
        pad = [(0, missing if a == axis else 0) for a in range(3)]
        moved = np.moveaxis(np.pad(means, pad, mode="edge"), axis, 0)
        parts = moved.reshape(-1, factor, *moved.shape[1:])
        means = np.moveaxis(parts.mean(axis=1, dtype=np.float32), 0, axis)
    return means.astype(np.float32)
