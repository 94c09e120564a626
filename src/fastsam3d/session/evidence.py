"""What was painted binds the answer, whatever the model makes of it.

The voxels under a positive scribble belong to the object, those under a negative scribble or lasso
do not. A positive lasso is drawn around an object, often loosely: it guides and does not bind. Of
two marks on a voxel the later counts, and a later click of the other sign inside a mark takes that
mark back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastsam3d.prompts import Lasso, Painted, Point, Scribble
from fastsam3d.volume import Region

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastsam3d.prompts import PromptSet
    from fastsam3d.volume import Geometry

    Marks = tuple[bool, NDArray[np.int64]]


def apply_evidence(
    region: Region, mask: NDArray[np.uint8], prompts: PromptSet, geometry: Geometry
) -> tuple[Region, NDArray[np.uint8]]:
    """Set and clear the voxels that were painted.

    Args:
        region: Box of the volume with all foreground.
        mask: The model's answer in it, 0 or 1.
        prompts: As given, in any frame.
        geometry: Grid of the volume.

    Returns:
        The box and the mask, the same objects when nothing was painted.

    Raises:
        PromptError: A prompt lies outside of the volume.
    """
    for positive, voxels in _marks(prompts, geometry):
        if positive:
            low, stop = voxels.min(axis=0).tolist(), (voxels.max(axis=0) + 1).tolist()
            grown = region.union(Region(tuple(low), tuple(stop)))
            region, mask = grown, _moved(mask, region, grown)
        inside = voxels - region.start
        inside = inside[np.all((inside >= 0) & (inside < region.shape), axis=1)]
        mask = mask.copy()
        mask[tuple(inside.T)] = positive
    return region, mask


def _marks(prompts: PromptSet, geometry: Geometry) -> list[Marks]:
    marks: list[Marks] = []
    for prompt in prompts:
        is_area = isinstance(prompt, Lasso) or (
            isinstance(prompt, Painted) and prompt.lasso_axis is not None
        )
        if isinstance(prompt, Scribble | Lasso | Painted) and not (is_area and prompt.positive):
            marks.append((prompt.positive, prompt.voxels(geometry)))
        elif isinstance(prompt, Point) and marks:
            at = np.floor(np.asarray(prompt.to_voxel(geometry).position) + 0.5)
            marks = [
                (positive, voxels)
                for positive, voxels in marks
                if positive == prompt.positive or not np.any(np.all(voxels == at, axis=1))
            ]
    return marks


def _moved(mask: NDArray[np.uint8], region: Region, target: Region) -> NDArray[np.uint8]:
    """Return a mask in a larger box."""
    moved = np.zeros(target.shape, np.uint8)
    if not region.is_empty:
        i, j, k = (-start for start in target.start)
        moved[region.shift((i, j, k)).slices] = mask
    return moved
