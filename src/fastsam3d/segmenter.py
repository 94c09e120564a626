"""The interface that every surface holds: the command line, a server, a viewer, the benchmark.

A segmenter may compute here (`fastsam3d.session.Session`) or elsewhere; this module loads no torch,
so that a client can do without it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from fastsam3d.volume import Mask, Region, Volume

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from fastsam3d.prompts import Box, MaskPrompt, Point, PromptSet

EMPTY_REGION = Region((0, 0, 0), (0, 0, 0))


@dataclass(frozen=True, eq=False, kw_only=True)
class Prediction:
    """What a segmenter answers to a prompt.

    Attributes:
        volume: The volume that was segmented.
        region: Box of the volume that holds all foreground; empty without any.
        region_mask: The mask in `region`, uint8 0 or 1, shape `region.shape`, read-only.
        changed: Box outside of which the mask equals that of the prediction before.
        roi: Box of the volume that the model saw; empty while no prompt has placed it.
        spacing_mm: Side of the voxels in which the model saw it; 0 without an ROI.
        predicted_quality: The model's own estimate of the mask's IoU; 1 for a mask prompt that is
            returned as given, 0 for an empty mask.
        encode_ms: Time spent on cutting and encoding ROIs; 0 when the embedding was at hand.
        click_ms: The rest: decoding, pasting and deciding.
        warnings: What the user should know, a sentence each.
    """

    volume: Volume = field(repr=False)
    region: Region
    region_mask: NDArray[np.uint8] = field(repr=False)
    changed: Region
    roi: Region
    spacing_mm: float
    predicted_quality: float
    encode_ms: float
    click_ms: float
    warnings: tuple[str, ...] = ()

    @property
    def mask(self) -> Mask:
        """The mask on the volume's own grid, made anew at each access.

        A viewer that keeps a mask needs only `paste_changes`.
        """
        # In the volume's memory order, so that it is written, and shown, without being turned over.
        order = "F" if self.volume.array.flags.f_contiguous else "C"
        array = np.zeros(self.volume.shape, np.uint8, order=order)
        array[self.region.slices] = self.region_mask
        return self.volume.new_mask(array)

    def paste_changes(self, array: NDArray[Any]) -> None:
        """Bring the array of the prediction before up to date, writing to `changed` only.

        Args:
            array: Mask of the prediction before (zeros before the first), changed in place; shape
                of the volume.
        """
        array[self.changed.slices] = 0
        array[self.region.slices] = self.region_mask


@runtime_checkable
class Segmenter(Protocol):
    """Something that segments one object of one volume, prompt by prompt.

    The order of prompts counts: the result for several prompts is that of giving them one by one.
    """

    @property
    def prompts(self) -> PromptSet:
        """The prompts so far, oldest first."""
        ...

    def set_volume(self, volume: Volume) -> None:
        """Start anew on a volume, without prompts."""
        ...

    def add_point(
        self, point: Point | Iterable[float], *, positive: bool | None = None
    ) -> Prediction:
        """Add a click; plain numbers are voxel indices i, j, k."""
        ...

    def add_box(self, box: Box) -> Prediction:
        """Add a box around the object."""
        ...

    def add_mask(self, mask: MaskPrompt | Mask) -> Prediction:
        """Go on from a mask."""
        ...

    def predict(self, prompts: PromptSet) -> Prediction:
        """Replace all prompts."""
        ...

    def undo(self) -> Prediction | None:
        """Take the latest prompt back; None when no prompt is left."""
        ...

    def reset(self) -> None:
        """Forget all prompts and keep the volume."""
        ...
