"""Finished neighbours as negative evidence: points inside locked objects near a first prompt."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fastsam3d.prompts import Box, Lasso, Painted, Point, Scribble, SliceBox
from fastsam3d.volume import Region

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from fastsam3d.prompts import Prompt
    from fastsam3d.session.object_mask import ObjectMask
    from fastsam3d.volume import Geometry

REACH_MM: Final = 40.0
"""Neighbours further away have nothing to say."""


def negatives_near(
    prompt: Prompt, locked: Iterable[ObjectMask], geometry: Geometry, *, limit: int
) -> tuple[Point, ...]:
    """Return negative points in the middle of what is near of locked objects, nearest last.

    Args:
        prompt: The first of a new object; a mask prompt has no neighbours.
        locked: Masks of locked objects.
        geometry: Grid of the volume.
        limit: How many points at most, one for each object.

    Raises:
        PromptError: The prompt lies outside of the volume.
    """
    centre = _centre(prompt, geometry)
    if centre is None or limit < 1:
        return ()
    found: list[tuple[float, Point]] = []
    spacing = np.asarray(geometry.spacing)
    low = np.floor(centre - REACH_MM / spacing).astype(int).tolist()
    high = np.ceil(centre + REACH_MM / spacing + 1).astype(int).tolist()
    near = Region(tuple(low), tuple(high)).clip(geometry.shape)
    for mask in locked:
        region = mask.region.intersection(near)
        part = mask.part(region) if not region.is_empty else None
        if part is None or not part.any():
            continue
        voxel = _deepest(part, geometry) + region.start
        distance = float(np.linalg.norm((voxel - centre) * spacing))
        found.append((distance, Point.voxel(voxel.tolist(), positive=False)))
    found.sort(key=lambda pair: pair[0])
    return tuple(point for _, point in found[:limit][::-1])


def _deepest(part: NDArray[np.bool_], geometry: Geometry) -> NDArray[np.int64]:
    ndimage: Any = import_module("scipy.ndimage")
    depth = ndimage.distance_transform_edt(np.pad(part, 1), sampling=geometry.spacing)
    return np.array(np.unravel_index(int(depth.argmax()), depth.shape)) - 1


def _centre(prompt: Prompt, geometry: Geometry) -> NDArray[np.float64] | None:
    """Return the middle of a prompt in voxels of the volume."""
    if isinstance(prompt, Point):
        return np.asarray(prompt.to_voxel(geometry).position)
    if isinstance(prompt, Box | SliceBox):
        region = prompt.to_voxel(geometry).region
        return (np.add(region.start, region.stop) - 1) / 2
    if isinstance(prompt, Scribble):
        return prompt.line(geometry).mean(axis=0)
    if isinstance(prompt, Lasso | Painted):
        return prompt.voxels(geometry).mean(axis=0)
    return None
