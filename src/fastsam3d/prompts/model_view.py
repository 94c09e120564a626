"""How a model that knows points, boxes and masks sees what is drawn on slices.

A scribble becomes a few well-spread points along it, a lasso points deep inside it, a slice box
its centre. The point that is nearest to the middle comes last, where a session looks for the
centre of its ROI. What the user painted is also evidence: `marked_voxels` says which voxels an
answer must or must not hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fastsam3d.prompts.drawn import Lasso, Scribble, SliceBox
from fastsam3d.prompts.prompt_set import PromptSet
from fastsam3d.prompts.types import Point

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastsam3d.prompts.plain import Prompt
    from fastsam3d.volume import Geometry


@dataclass(frozen=True, kw_only=True)
class DrawnPoints:
    """How many points stand for a drawn prompt.

    Attributes:
        max_scribble: For a scribble at most.
        scribble_step_mm: And one for each so many millimetres of its extent.
        max_lasso: For a lasso at most.
        lasso_step_mm: As `scribble_step_mm`.
        lasso_depth: Points of a lasso lie at least this part of its greatest depth inside.
    """

    max_scribble: int = 4
    scribble_step_mm: float = 10.0
    max_lasso: int = 4
    lasso_step_mm: float = 10.0
    lasso_depth: float = 0.5


DEFAULT_DRAWN_POINTS: Final = DrawnPoints()


def model_prompts(
    prompts: PromptSet, geometry: Geometry, config: DrawnPoints = DEFAULT_DRAWN_POINTS
) -> PromptSet:
    """Return prompts in the voxel frame of a volume as points, boxes and masks, order kept.

    Args:
        prompts: As given.
        geometry: Grid of the volume.
        config: How many points stand for what is drawn.

    Raises:
        PromptError: A prompt lies outside of the volume or on another grid.
    """
    seen: list[Prompt] = []
    for prompt in prompts:
        seen.extend(_seen_as(prompt.to_voxel(geometry), geometry, config))
    return PromptSet(tuple(seen)).to_voxel(geometry)


def _seen_as(prompt: Prompt, geometry: Geometry, config: DrawnPoints) -> list[Prompt]:
    if isinstance(prompt, Scribble):
        line = prompt.line(geometry)
        chosen = spread(line, geometry, limit=config.max_scribble, step_mm=config.scribble_step_mm)
        return _points(chosen, positive=prompt.positive)
    if isinstance(prompt, Lasso):
        deep = _deep_voxels(prompt.voxels(geometry), geometry, share=config.lasso_depth)
        chosen = spread(deep, geometry, limit=config.max_lasso, step_mm=config.lasso_step_mm)
        return _points(chosen, positive=prompt.positive)
    if isinstance(prompt, SliceBox):
        centre = (np.add(prompt.start, prompt.stop) - 1) / 2
        return [Point.voxel(centre.tolist())]
    return [prompt]


def spread(
    voxels: NDArray[np.int64], geometry: Geometry, *, limit: int, step_mm: float
) -> NDArray[np.int64]:
    """Choose voxels far from each other; the one nearest to the middle of all comes last.

    Args:
        voxels: Candidates, (N, 3), N at least 1.
        geometry: Grid of the volume, for distances in mm.
        limit: How many at most.
        step_mm: Stop when all candidates are nearer than this to a chosen one.

    Returns:
        Chosen voxels, (M, 3), M from 1 to `limit`.

    Source: farthest-point sampling, Gonzalez 1985.
    """
    at_mm = voxels * np.asarray(geometry.spacing)
    # Whole micrometres: noise of a last bit must not decide between equals.
    from_middle = np.linalg.norm(at_mm - at_mm.mean(axis=0), axis=1).round(3)
    chosen = [int(from_middle.argmin())]
    distance = np.linalg.norm(at_mm - at_mm[chosen[0]], axis=1)
    while len(chosen) < limit and distance.max() >= step_mm:
        chosen.append(int(distance.round(3).argmax()))
        distance = np.minimum(distance, np.linalg.norm(at_mm - at_mm[chosen[-1]], axis=1))
    return voxels[chosen[::-1]]


def _deep_voxels(
    voxels: NDArray[np.int64], geometry: Geometry, *, share: float
) -> NDArray[np.int64]:
    """Return the voxels of a lasso that are far inside its outline."""
    ndimage: Any = import_module("scipy.ndimage")
    low = voxels.min(axis=0) - 1
    inside = np.zeros(voxels.max(axis=0) - low + 2, np.bool_)
    inside[tuple((voxels - low).T)] = True
    # Across a slice there is no inside: depth counts along it only.
    flat_axis = int(np.argmin(np.ptp(voxels, axis=0)))
    inside = inside.any(axis=flat_axis)
    spacing = np.delete(geometry.spacing, flat_axis)
    depth = ndimage.distance_transform_edt(inside, sampling=spacing)
    here = np.delete(voxels - low, flat_axis, axis=1)
    depths = depth[tuple(here.T)]
    return voxels[depths >= share * depths.max()]


def _points(voxels: NDArray[np.int64], *, positive: bool) -> list[Prompt]:
    return [Point.voxel(voxel, positive=positive) for voxel in voxels.tolist()]
