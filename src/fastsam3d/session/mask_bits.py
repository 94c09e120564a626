"""A mask packed to bits on the device, and what the host makes of it.

Shape legend: S side of the ROI, L side of the logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

Bounds = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

_NUM_FACTS = 7  # first voxel of each axis, last plus one, quality
_FACT_BYTES = 4


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


def packed_size(side: int) -> int:
    """Return how many bytes `pack_mask` makes of an ROI of `side` voxels per axis."""
    return side**3 // 8 + _NUM_FACTS * _FACT_BYTES


def pack_mask(logits: Tensor, quality: Tensor, side: int) -> Tensor:
    """Threshold logits at the ROI's resolution; nothing waits for the device.

    Args:
        logits: Shape (1, 1, L, L, L).
        quality: Shape (1, 1), float32.
        side: S, a multiple of 8; logits of another side are interpolated.

    Returns:
        Bytes of shape (`packed_size`,), one tensor because each copy to the host costs a launch:
        the mask's bits, the first voxel highest as `numpy.packbits` has it, then the facts, each of
        four bytes, the lowest first: first voxel of each axis (S where nothing is set), last plus
        one (0 there), and the quality's float32.
    """
    if logits.shape[-1] != side:
        logits = functional.interpolate(logits, size=(side,) * 3, mode="trilinear")
    mask = logits[0, 0] > 0
    places = torch.arange(7, -1, -1, device=mask.device, dtype=torch.int32)
    values = torch.ones_like(places) << places
    bits = (mask.view(side, side, side // 8, 8) * values).sum(-1).to(torch.uint8)
    ends = _first_and_last(mask)
    facts = torch.cat([ends, quality.flatten().view(torch.int32)])
    shifts = torch.arange(0, 8 * _FACT_BYTES, 8, device=mask.device, dtype=torch.int32)
    as_bytes = ((facts[:, None] >> shifts) & 255).to(torch.uint8)
    return torch.cat([bits.flatten(), as_bytes.flatten()])


def _first_and_last(mask_IJK: Tensor) -> Tensor:
    """Return int32 (6,): the first voxel of each axis, then the last plus one of each."""
    side = len(mask_IJK)
    steps = torch.arange(side, device=mask_IJK.device, dtype=torch.int32)
    # Row by row first: one kernel then makes all three from one reading of the mask.
    in_row = mask_IJK.amax(2)
    first = torch.where(mask_IJK, steps, side).amin(2)
    last = torch.where(mask_IJK, steps + 1, 0).amax(2)
    planes, rows = steps[:, None].expand(side, side), steps.expand(side, side)
    low = [torch.where(in_row, at, side).amin() for at in (planes, rows)]
    high = [torch.where(in_row, at + 1, 0).amax() for at in (planes, rows)]
    return torch.stack([*low, first.amin(), *high, last.amax()])


def unpack_mask(logits: Tensor, packed: NDArray[np.uint8], side: int) -> RoiAnswer:
    """Return what `pack_mask` made as an answer that shares no memory with it.

    Args:
        logits: Kept as they are.
        packed: Made by `pack_mask`.
        side: As it was given there.
    """
    facts = packed[side**3 // 8 :]
    *ends, _ = cast("list[int]", facts.view("<i4").tolist())
    low, high = ends[:3], ends[3:]
    if low[0] >= high[0]:
        low, high = [0, 0, 0], [0, 0, 0]
    bounds = cast("Bounds", tuple(zip(low, high, strict=True)))
    # Outside of the bounds all is zero, which need not be copied.
    inside = tuple(slice(*bound) for bound in bounds[:2])
    bits = np.zeros((side, side, side // 8), np.uint8)
    bits[inside] = packed[: side**3 // 8].reshape(bits.shape)[inside]
    return RoiAnswer(bits, bounds, float(facts.view("<f4")[-1]), logits)
