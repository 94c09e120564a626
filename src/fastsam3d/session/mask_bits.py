"""A mask packed to bits on the device, and what the host makes of it.

Shape legend: S side of the ROI, L side of the logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch.nn import functional

from fastsam3d.model.triton_kernels import load_kernels

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

Bounds = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

_NUM_ENDS = 6
_QUALITY_BYTES = 4
_FACTS = Struct(f"<{2 * _NUM_ENDS}Bf")  # what follows the bits


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
    return side**3 // 8 + 2 * _NUM_ENDS + _QUALITY_BYTES


def mask_packer(
    side: int, source: int, *, by_kernel: bool
) -> Callable[[Tensor, Tensor, int], Tensor]:
    """Return `pack_mask`, or the Triton kernels that make the same bytes on a GPU.

    Args:
        side: S.
        source: L.
        by_kernel: Prefer the kernels; they need Triton, S a power of two, and S / L up to 8.
    """
    kernels = load_kernels("fastsam3d.session.mask_bits_kernel") if by_kernel else None
    if kernels is not None and kernels.serves(side, source):
        return kernels.pack_mask_by_kernel
    return pack_mask


def pack_mask(logits: Tensor, quality: Tensor, side: int) -> Tensor:
    """Threshold logits at the ROI's resolution; nothing waits for the device.

    Args:
        logits: Shape (1, 1, L, L, L).
        quality: Shape (1, 1), float32.
        side: S, a multiple of 8; logits of another side are interpolated.

    Returns:
        Bytes of shape (`packed_size`,), one tensor because each copy to the host costs a launch:
        the mask's bits, the first voxel highest as `numpy.packbits` has it; first voxel (S where
        nothing is set) of j and k, last plus one (0 there) of j and k, first and last of i, the
        lower bytes of all six before the higher; the quality's float32, its lowest byte first.
    """
    if logits.shape[-1] != side:
        logits = functional.interpolate(logits, size=(side,) * 3, mode="trilinear")
    mask = logits[0, 0] > 0
    places = torch.arange(7, -1, -1, device=mask.device, dtype=torch.int32)
    values = torch.ones_like(places) << places
    bits = (mask.view(side, side, side // 8, 8) * values).sum(-1)
    ends = _first_and_last(mask).to(torch.int32)
    shifts = torch.arange(0, 8 * _QUALITY_BYTES, 8, device=mask.device, dtype=torch.int32)
    of_quality = quality.flatten().view(torch.int32) >> shifts
    parts = (bits.flatten(), ends & 255, ends >> 8, of_quality & 255)
    return torch.cat([part.to(torch.uint8) for part in parts])


def _first_and_last(mask_IJK: Tensor) -> Tensor:
    """Return (6,), float32: first voxel of axis j and of k, last plus one of j, k, then both of i.

    By rows, by planes, then at last. Ends are negative, so that all are minima, and nothing is
    concatenated that was reduced: so each step is one kernel.
    """
    side = len(mask_IJK)
    # Not integers: torch 2.11 fails to compile their minimum where positions are floats as well.
    steps = torch.arange(side, device=mask_IJK.device, dtype=torch.float32)

    def ends(is_set: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(is_set, steps, float(side)), torch.where(is_set, -1 - steps, 0.0)

    first_k, last_k = (part.amin(2) for part in ends(mask_IJK))
    first_j, last_j = ends(last_k < 0)
    by_plane = torch.stack([first_j, first_k, last_j, last_k]).amin(2)
    first_i, last_i = ends(by_plane[3] < 0)
    row = torch.arange(_NUM_ENDS, device=mask_IJK.device)[:, None]
    picked = by_plane[row[:, 0].clamp(max=3)]
    return torch.where(row < 4, picked, torch.where(row == 4, first_i, last_i)).amin(1).abs()


def unpack_mask(logits: Tensor, packed: NDArray[np.uint8], side: int) -> RoiAnswer:
    """Return what `pack_mask` made as an answer.

    Args:
        logits: Kept as they are.
        packed: Made by `pack_mask`; the answer keeps it.
        side: As it was given there.
    """
    *parts, quality = _FACTS.unpack_from(packed.data, side**3 // 8)
    ends = [a + 256 * b for a, b in zip(parts[:_NUM_ENDS], parts[_NUM_ENDS:], strict=True)]
    low, high = [ends[4], *ends[:2]], [ends[5], *ends[2:4]]
    if low[0] >= high[0]:
        low, high = [0, 0, 0], [0, 0, 0]
    bounds = cast("Bounds", tuple(zip(low, high, strict=True)))
    bits = packed[: side**3 // 8].reshape(side, side, side // 8)
    return RoiAnswer(bits, bounds, quality, logits)
