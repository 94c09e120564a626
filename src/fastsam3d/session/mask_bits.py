"""A mask packed to bits on the device, and what the host makes of it.

Shape legend: S side of the ROI, L side of the logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

Bounds = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@dataclass(frozen=True, eq=False)
class RoiAnswer:
    """The mask of one prompt set in the frame of an ROI.

    Attributes:
        bits: Of the whole ROI, uint8 of shape (S, S, S / 8), see `pack_mask`.
        bounds: Half-open voxel range of each axis; all (0, 0) where nothing is set.
        quality: Predicted IoU.
        logits: On the device, (1, 1, L, L, L) float32, to be fed back as mask prompt.
    """

    bits: NDArray[np.uint8]
    bounds: Bounds
    quality: float
    logits: Tensor

    @property
    def mask(self) -> NDArray[np.bool_]:
        """What lies inside the bounds; outside nothing is set."""
        (i0, i1), (j0, j1), (k0, k1) = self.bounds
        return np.unpackbits(self.bits[i0:i1, j0:j1], axis=-1)[..., k0:k1].view(np.bool_)


def pack_mask(logits: Tensor, quality: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Threshold logits at the ROI's resolution; nothing waits for the device.

    Args:
        logits: Shape (1, 1, L, L, L).
        quality: Shape (1, 1).
        side: S, a multiple of 8; logits of another side are interpolated.

    Returns:
        Bits, uint8 of shape (S, S, S / 8), the first voxel highest as `numpy.packbits` has it; and
        the facts, float32 of shape (7,): first voxel of each axis (S where nothing is set), last
        plus one (0 there), quality. Each copy to the host costs a launch, so there are two.
    """
    if logits.shape[-1] != side:
        logits = functional.interpolate(logits, size=(side,) * 3, mode="trilinear")
    mask = logits[0, 0] > 0
    places = torch.arange(7, -1, -1, device=mask.device, dtype=torch.int32)
    values = torch.ones_like(places) << places
    bits = (mask.view(side, side, side // 8, 8) * values).sum(-1).to(torch.uint8)
    steps = torch.arange(side, device=mask.device, dtype=torch.int32)
    along = torch.stack([mask.amax((1, 2)), mask.amax((0, 2)), mask.amax((0, 1))])
    low = torch.where(along, steps, side).amin(1).float()
    high = torch.where(along, steps + 1, 0).amax(1).float()
    return bits, torch.cat([low, high, quality.flatten()])


def unpack_mask(logits: Tensor, bits: Tensor, facts: Tensor) -> RoiAnswer:
    """Return what `pack_mask` made as an answer.

    Args:
        logits: Kept as they are.
        bits: In host memory.
        facts: In host memory.
    """
    *ends, quality = cast("list[float]", cast("Any", facts).tolist())
    low, high = [int(end) for end in ends[:3]], [int(end) for end in ends[3:]]
    if low[0] >= high[0]:
        low, high = [0, 0, 0], [0, 0, 0]
    array = cast("NDArray[np.uint8]", cast("object", bits.numpy()))
    bounds_of_axes = cast("Bounds", tuple(zip(low, high, strict=True)))
    return RoiAnswer(array, bounds_of_axes, quality, logits)
