"""Losses on mask logits. Shape legend: B prompt sets, M mask candidates, S ROI side."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fastsam3d.model.hr_decoder import central_part

DICE_SMOOTH = 1.0
BAND_WEIGHT = 4.0
BAND_REACH = (1, 2)


def boundary_weights(target: Tensor) -> Tensor:
    """Return 1 + `BAND_WEIGHT` within two voxels of the target's surface, else 1.

    Args:
        target: bool (B, S, S, S).

    Returns:
        float32, same shape.
    """
    near = torch.zeros_like(target)
    for axis in (1, 2, 3):
        for reach in BAND_REACH:
            near = near | (target ^ target.roll(reach, axis)) | (target ^ target.roll(-reach, axis))
    return 1 + BAND_WEIGHT * near.float()


def soft_dice(logits: Tensor, target: Tensor) -> Tensor:
    """Return the Dice of probabilities against targets.

    Args:
        logits: (B, S, S, S).
        target: bool (B, S, S, S).

    Returns:
        float32 (B,).
    """
    probabilities, truth, axes = torch.sigmoid(logits.float()), target.float(), (1, 2, 3)
    total = probabilities.sum(axes) + truth.sum(axes)
    return (2 * (probabilities * truth).sum(axes) + DICE_SMOOTH) / (total + DICE_SMOOTH)


class Overlap(NamedTuple):
    """Voxels of both masks, and of either one, each (B, 1)."""

    both: Tensor
    either: Tensor


def rough_overlap(logits: Tensor, target: Tensor, inner_side: int) -> Overlap:
    """Return how a rough mask and the target overlap outside of the central box of `inner_side`.

    Args:
        logits: (B, 1, S/4, S/4, S/4).
        target: bool (B, S, S, S).
        inner_side: In voxels of the target.
    """
    share = functional.avg_pool3d(target[:, None].float(), 4)[:, 0]
    mask = (logits[:, 0] > 0).float()
    inner = central_part(inner_side // 4, share.shape[-1])
    outside = torch.full_like(share[:1], 4.0**3)
    outside[:, inner, inner, inner] = 0
    both, axes = mask * share, (1, 2, 3)
    either = mask + share - both
    return Overlap((both * outside).sum(axes)[:, None], (either * outside).sum(axes)[:, None])


def mask_losses(
    logits: Tensor, target: Tensor, weights: Tensor, beyond: Overlap | None = None
) -> tuple[Tensor, Tensor]:
    """Return soft Dice loss plus weighted cross entropy, and the IoU of the thresholded mask.

    Args:
        logits: (B, M, S, S, S).
        target: bool (B, S, S, S).
        weights: Voxel weights of the cross entropy, float32 (B, S, S, S).
        beyond: What the IoU counts besides, in voxels of these logits.

    Returns:
        Loss (B, M) with gradient, IoU (B, M) without.
    """
    logits = logits.float()
    truth = target[:, None].float()
    axes = (2, 3, 4)
    probabilities = torch.sigmoid(logits)
    overlap = (probabilities * truth).sum(axes)
    total = probabilities.sum(axes) + truth.sum(axes)
    dice = 1 - (2 * overlap + DICE_SMOOTH) / (total + DICE_SMOOTH)
    entropy = functional.softplus(logits) - logits * truth
    entropy = (entropy * weights[:, None]).mean(axes)
    with torch.no_grad():
        mask = logits > 0
        both = (mask & target[:, None]).sum(axes).float()
        either = (mask | target[:, None]).sum(axes).float()
        if beyond is not None:
            both, either = both + beyond.both, either + beyond.either
        iou = both / either.clamp(min=1)
    return dice + entropy, iou


def rough_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return soft Dice loss plus cross entropy against the target averaged onto the logits' grid.

    Args:
        logits: (B, 1, S/4, S/4, S/4).
        target: bool (B, S, S, S).

    Returns:
        Loss (B,).
    """
    logits = logits[:, 0].float()
    share = functional.avg_pool3d(target[:, None].float(), 4)[:, 0]
    probabilities = torch.sigmoid(logits)
    axes = (1, 2, 3)
    overlap = (probabilities * share).sum(axes)
    total = probabilities.sum(axes) + share.sum(axes)
    dice = 1 - (2 * overlap + DICE_SMOOTH) / (total + DICE_SMOOTH)
    return dice + (functional.softplus(logits) - logits * share).mean(axes)
