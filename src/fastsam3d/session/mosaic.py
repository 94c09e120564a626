"""Overlapping ROIs of one spacing as one picture, for objects longer than an ROI.

All tiles lie on the voxel lattice of the first ROI, so that nothing is interpolated between them.
Where tiles overlap their logits are blended with weights that fall from a tile's middle to nothing
at its faces: a face leaves no seam, and what lies beyond it is decided by the tile in whose middle
it is.

Shape legend: I J K lattice, S side of a tile. Lattice coordinates are voxels of the first ROI, so
that a mosaic may begin at negative ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch.nn.functional import avg_pool3d, interpolate

from fastsam3d.preprocess.roi import (
    MASK_PROMPT_LOGIT,
    Roi,
    canonical_spacing,
    foreground,
    roi_region,
)
from fastsam3d.session.connected import bounding_box
from fastsam3d.session.extent import clicked_parts, scan_range
from fastsam3d.volume import Region

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from fastsam3d.volume import Geometry

    Triple = tuple[int, int, int]

MAX_VOXELS: Final = 2**25
"""A mosaic does not become larger than this: 128 MiB of logits."""
SHARPNESS: Final = 4
"""Power of the weights: higher gives the more central tile more of the say."""
NEWER: Final = 2.0
"""How much more the tile counts that has just been looked at: it knows the newest prompt."""
SEARCH: Final = 10
"""How many voxels back from a cut the middle of the next tile may lie."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Mosaic:
    """Logits of some tiles, blended.

    Attributes:
        anchor: The first tile; its voxels are the lattice.
        start: Lattice coordinates of the first voxel of `logits`.
        logits: float32, shape (I, J, K); minus `MASK_PROMPT_LOGIT` where no tile lies.
        origins: Lattice coordinates of the first voxel of each tile.
        qualities: Predicted quality of each tile.
    """

    anchor: Roi
    start: Triple
    logits: Tensor
    origins: tuple[Triple, ...]
    qualities: tuple[float, ...]

    @classmethod
    def of(cls, roi: Roi, logits_SSS: Tensor, quality: float) -> Mosaic:
        """Return the mosaic of one tile, its logits brought to the resolution of the ROI."""
        zero = (0, 0, 0)
        if logits_SSS.shape[0] != roi.size:
            size = (roi.size,) * 3
            logits_SSS = interpolate(logits_SSS[None, None], size=size, mode="trilinear")[0, 0]
        return cls(anchor=roi, start=zero, logits=logits_SSS, origins=(zero,), qualities=(quality,))

    @property
    def num_bytes(self) -> int:
        """Memory held by the logits."""
        return self.logits.numel() * self.logits.element_size()

    @property
    def quality(self) -> float:
        """Mean predicted quality of the tiles."""
        return sum(self.qualities) / len(self.qualities)

    def roi(self, origin: Triple, geometry: Geometry) -> Roi:
        """Return the ROI of a tile."""
        step = self.anchor.spacing_mm / np.asarray(canonical_spacing(geometry))
        i, j, k = (np.asarray(self.anchor.centre_voxel) + np.asarray(origin) * step).tolist()
        return replace(self.anchor, centre_voxel=(i, j, k))

    def origin_of(self, roi: Roi, geometry: Geometry) -> Triple | None:
        """Return where a tile begins on the lattice; None where an ROI is no tile of it."""
        step = self.anchor.spacing_mm / np.asarray(canonical_spacing(geometry))
        offset = np.subtract(roi.centre_voxel, self.anchor.centre_voxel) / step
        i, j, k = (int(value) for value in np.rint(offset))
        is_tile = roi.spacing_mm == self.anchor.spacing_mm and np.allclose(offset, (i, j, k))
        return (i, j, k) if is_tile else None

    def region(self, geometry: Geometry) -> Region:
        """Return the box of the volume as stored that holds all that was looked at."""
        seen = Region((0, 0, 0), (0, 0, 0))
        for origin in self.origins:
            seen = seen.union(roi_region(geometry, self.roi(origin, geometry)))
        return seen

    def nearest(self, point: NDArray[np.float64]) -> tuple[int, float]:
        """Return the number of the tile in which a lattice point lies most centrally.

        Returns:
            The number, and the point's distance from the tile's middle over half of its side.
        """
        middles = np.array(self.origins) + (self.anchor.size - 1) / 2
        distances = np.abs(middles - point).max(axis=1) / (self.anchor.size / 2)
        number = int(distances.argmin())
        return number, float(distances[number])

    def cut(self, origin: Triple, size: int) -> Tensor:
        """Return what is known of a tile as a mask prompt of `size`^3 logits."""
        side = self.anchor.size
        known = torch.full((side,) * 3, -MASK_PROMPT_LOGIT, device=self.logits.device)
        here, there = _overlap(origin, (side,) * 3, self.start, tuple(self.logits.shape))
        if here is not None and there is not None:
            known[here] = self.logits[there]
        return _pooled(known, size)

    def fits(self, origin: Triple) -> bool:
        """Whether a further tile leaves the mosaic small enough to be kept."""
        _, shape = self._box_with(origin)
        return int(np.prod(shape)) <= MAX_VOXELS

    def with_tile(self, origin: Triple, logits_SSS: Tensor, quality: float) -> Mosaic:
        """Return the mosaic with a tile more, or with a tile looked at again.

        Args:
            origin: Lattice coordinates of the tile's first voxel.
            logits_SSS: What was found in it.
            quality: Its predicted quality.
        """
        start, shape = self._box_with(origin)
        logits = torch.full(shape, -MASK_PROMPT_LOGIT, device=self.logits.device)
        old, _ = _overlap(start, shape, self.start, tuple(self.logits.shape))
        if old is not None:
            logits[old] = self.logits
        here, _ = _overlap(start, shape, origin, (self.anchor.size,) * 3)
        if here is not None:
            share = self._share(origin, is_new=origin not in self.origins)
            share = share.to(logits.device)
            logits[here] = torch.lerp(logits[here], logits_SSS.float(), share)
        others = [n for n, known in enumerate(self.origins) if known != origin]
        return replace(
            self,
            start=start,
            logits=logits,
            origins=(*(self.origins[n] for n in others), origin),
            qualities=(*(self.qualities[n] for n in others), quality),
        )

    def with_clicked_parts(self, clicks: NDArray[np.float64]) -> Mosaic:
        """Return the mosaic without the parts that hold no positive click, lattice (N, 3)."""
        if not len(clicks):
            return self
        return replace(self, logits=clicked_parts(self.logits, clicks - self.start))

    def next_seed(self, geometry: Geometry, contact: float) -> Triple | None:
        """Return where the next tile belongs: in the middle of the mask at its largest cut.

        Args:
            geometry: Grid of the volume.
            contact: Part of a tile's face below which a cut is let be.

        Returns:
            Lattice coordinates; None where the mask is not cut off.
        """
        is_mask = foreground(self.logits)
        if not _touches_border(is_mask) and len(self.origins) == 1:
            return None
        cut = is_mask & self._is_at_open_face(geometry)
        smallest = max(1.0, contact * self.anchor.size**2)
        if np.count_nonzero(cut) < smallest:
            return None
        ndimage: Any = import_module("scipy.ndimage")
        # Most cuts lie in one face, whose voxels are soon gone through.
        around = bounding_box(cut)
        labels, _ = ndimage.label(cut[around], structure=np.ones((3, 3, 3)))
        sizes = np.bincount(labels.ravel())[1:]
        if sizes.max() < smallest:
            return None
        box = tuple(
            slice(side.start + whole.start, side.stop + whole.start)
            for side, whole in zip(
                ndimage.find_objects(labels)[int(sizes.argmax())], around, strict=True
            )
        )
        slices = tuple(
            slice(max(0, side.start - SEARCH), min(length, side.stop + SEARCH))
            for side, length in zip(box, is_mask.shape, strict=True)
        )
        part = is_mask[slices]
        # The border of the box is no border of the object.
        depth = ndimage.distance_transform_edt(np.pad(part, 1, mode="edge"))[1:-1, 1:-1, 1:-1]
        depth = np.where(part, depth, 0.0)
        near = np.argwhere(depth >= depth.max() - 1e-6) + [side.start for side in slices]
        middle = np.array([(side.start + side.stop - 1) / 2 for side in box])
        at = near[int(np.square(near - middle).sum(axis=1).argmin())]
        i, j, k = (int(v) for v in at + np.asarray(self.start))
        return i, j, k

    def _box_with(self, origin: Triple) -> tuple[Triple, Triple]:
        side = self.anchor.size
        low = np.minimum(self.start, origin)
        high = np.maximum(np.add(self.start, tuple(self.logits.shape)), np.add(origin, side))
        i, j, k = (int(v) for v in low)
        a, b, c = (int(v) for v in high - low)
        return (i, j, k), (a, b, c)

    def _share(self, origin: Triple, *, is_new: bool) -> Tensor:
        """Return how much of each voxel of a tile the tile has to say, (S, S, S) in 0..1."""
        side = self.anchor.size
        own = _window(side) ** SHARPNESS
        others = torch.zeros((side,) * 3)
        for known in self.origins:
            here, there = _overlap(origin, (side,) * 3, known, (side,) * 3)
            if known == origin or here is None or there is None:
                continue
            others[here] = torch.maximum(others[here], _window(side)[there] ** SHARPNESS)
        own = own * (1.0 if is_new else NEWER**SHARPNESS)
        return own / (own + others)

    def _is_at_open_face(self, geometry: Geometry) -> NDArray[np.bool_]:
        """Return the voxels beside one that no tile holds although the scan goes on there."""
        shape = tuple(self.logits.shape)
        is_open = np.zeros([length + 2 for length in shape], np.bool_)
        scan = scan_range(geometry, self.anchor)
        inside = tuple(
            slice(max(0, low - first + 1), max(0, min(length + 2, high - first + 2)))
            for (low, high), first, length in zip(scan, self.start, shape, strict=True)
        )
        is_open[inside] = True
        side = self.anchor.size
        for origin in self.origins:
            at = np.subtract(origin, self.start) + 1
            is_open[tuple(slice(int(v), int(v) + side) for v in at)] = False
        beside = np.zeros(shape, np.bool_)
        middle = slice(1, -1)
        for axis in range(3):
            for step in (slice(None, -2), slice(2, None)):
                beside |= is_open[tuple(step if a == axis else middle for a in range(3))]
        return beside


def _touches_border(is_mask: NDArray[np.bool_]) -> bool:
    return any(bool(np.moveaxis(is_mask, axis, 0)[[0, -1]].any()) for axis in range(is_mask.ndim))


def _window(side: int) -> Tensor:
    """Return weights that fall from 1 in the middle of a tile to nearly 0 at its faces."""
    line = 1 - (torch.arange(side) - (side - 1) / 2).abs() / (side / 2)
    return torch.minimum(torch.minimum(line[:, None, None], line[:, None]), line)


def _overlap(
    a: Triple, shape_a: tuple[int, ...], b: Triple, shape_b: tuple[int, ...]
) -> tuple[tuple[slice, ...] | None, tuple[slice, ...] | None]:
    """Return what two boxes have in common as slices of each; None where nothing."""
    low = np.maximum(a, b)
    high = np.minimum(np.add(a, shape_a), np.add(b, shape_b))
    if np.any(high <= low):
        return None, None
    pairs = [
        tuple(slice(int(p), int(q)) for p, q in zip(low - first, high - first, strict=True))
        for first in (np.asarray(a), np.asarray(b))
    ]
    return pairs[0], pairs[1]


def _pooled(logits_SSS: Tensor, size: int) -> Tensor:
    step = logits_SSS.shape[0] // size
    if step <= 1:
        return logits_SSS
    return avg_pool3d(logits_SSS[None], step)[0]
