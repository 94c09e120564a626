"""An object on another scan: of the next time point, or another volume of the same patient.

The mask goes through world coordinates onto the other grid and is a mask prompt there; a point in
its middle asks the model to look again. The two scans must lie in one space: nothing is registered.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fastsam3d.errors import PromptError, SessionStateError
from fastsam3d.prompts import MaskPrompt, Point
from fastsam3d.prompts.simulate import first_click
from fastsam3d.session.object_mask import ObjectMask
from fastsam3d.volume import Region

if TYPE_CHECKING:
    from fastsam3d.prompts import Prompt
    from fastsam3d.session.study import Study
    from fastsam3d.volume import Geometry

_HALF: Final = 0.5


def resample_mask(mask: ObjectMask, source: Geometry, target: Geometry) -> ObjectMask:
    """Return a mask on another grid, by world coordinates.

    A voxel of the target belongs to it where the mask, interpolated linearly, is at least a half
    at the voxel's centre.

    Args:
        mask: Voxels of the source.
        source: Grid of the mask.
        target: Grid of the result.

    Returns:
        Empty where the mask lies outside of the target, or between its voxels.
    """
    if mask.is_empty or source.is_close(target):
        return mask
    # A margin of background, so that the edge is interpolated as everywhere else.
    low, high = np.subtract(mask.region.start, 1), np.add(mask.region.stop, 1)
    region = Region(low.tolist(), high.tolist())
    box = _box_on(target, source, region)
    if box.is_empty:
        return ObjectMask.empty()
    matrix = np.linalg.inv(source.affine) @ target.affine
    offset = matrix[:3, :3] @ box.start + matrix[:3, 3] - region.start
    ndimage: Any = import_module("scipy.ndimage")  # Late: most studies do without.
    share = ndimage.affine_transform(
        np.pad(mask.array, 1).astype(np.float32),
        matrix[:3, :3],
        offset,
        output_shape=box.shape,
        order=1,
        mode="grid-constant",
    )
    return ObjectMask.cropped(box, share >= _HALF)


def prior_prompts(mask: ObjectMask, geometry: Geometry) -> tuple[Prompt, ...]:
    """Return prompts that go on from a mask: itself, and the middle of its largest part.

    Args:
        mask: Voxels of the volume, not empty.
        geometry: Grid of the volume.
    """
    start = MaskPrompt.of_part(mask.region, mask.array, geometry)
    middle = first_click(mask.array, geometry.spacing)
    return start, Point.voxel(np.add(middle.position, mask.region.start).tolist())


def propagated_prompts(
    source: Study, object_id: int, target: Geometry, *, refine: bool = True
) -> tuple[Prompt, ...]:
    """Return the prompts that find an object of a study on another scan.

    Args:
        source: Where the object is.
        object_id: Which.
        target: Grid of the other scan, in the same world.
        refine: Let the model look again; otherwise the mask is copied.

    Raises:
        SessionStateError: There is no such object, or it is empty.
        PromptError: It lies outside of the other scan.
    """
    item = source.state.find(object_id)
    shown = source.state.shown[object_id]
    if shown.is_empty:
        message = f"Object {item.id} ({item.name}) is empty; give it prompts before it is copied."
        raise SessionStateError(message)
    mask = resample_mask(shown, source.volume.geometry, target)
    if mask.is_empty:
        message = (
            f"Object {item.id} ({item.name}) lies outside of the other scan, {target}; "
            "scans must share one world."
        )
        raise PromptError(message)
    found = prior_prompts(mask, target)
    return found if refine else found[:1]


def propagate(source: Study, object_id: int, target: Study, *, refine: bool = True) -> int:
    """Add an object of one study to that of another scan of the same patient.

    Name, colour and codes go along; the id is new. For the time points of one scan see `Series`.

    Args:
        source: Where the object is.
        object_id: Which.
        target: The other study; its session is asked.
        refine: Let the model look again; otherwise the mask is copied.

    Returns:
        The object's id in the other study.

    Raises:
        SessionStateError: There is no such object, or it is empty.
        PromptError: It lies outside of the other scan.
        CheckpointError: The model returned logits that are not finite.
    """
    prompts = propagated_prompts(source, object_id, target.volume.geometry, refine=refine)
    item = source.state.find(object_id)
    return target.add_object(
        item.name, colour=item.colour, terminology=item.terminology, prompts=prompts
    )


def _box_on(target: Geometry, source: Geometry, region: Region) -> Region:
    """Return the voxels of the target around a box of the source."""
    ends = np.array([region.start, region.stop]) - _HALF
    corners = np.stack(np.meshgrid(*ends.T, indexing="ij"), -1).reshape(-1, 3)
    at = target.world_to_voxel(source.voxel_to_world(corners))
    low, high = np.floor(at.min(axis=0)), np.ceil(at.max(axis=0)) + 1
    return Region(low.astype(int).tolist(), high.astype(int).tolist()).clip(target.shape)
