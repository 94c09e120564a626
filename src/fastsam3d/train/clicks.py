"""Simulated clicks on the device, batched, without waiting for it.

The reference for what a click is lies in `fastsam3d.prompts.simulate` (centre of the largest
error). Here its centre is approximated on the half grid by counting erosions, and jittered, so that
training sees central and careless clicks alike.

Shape legend: B prompt sets, S side of the half-resolution grid.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

NUM_EROSIONS = 8
CENTRAL_SHARE = 0.6


def erosion_depth(region: Tensor, *, steps: int = NUM_EROSIONS) -> Tensor:
    """Count how many 3^3 erosions each voxel survives, float (B, S, S, S), 0 outside `region`.

    That is the distance to the nearest voxel outside, the largest over the axes, up to `steps`; the
    grid is surrounded by outside. It is found one direction after another, in one pass each.
    """
    depth = steps * region.to(torch.uint8)
    for axis in (1, 2, 3):
        for reach in (1 - steps, steps - 1):
            depth = _depth_towards(depth, axis, reach)
    return depth.float()


def _depth_towards(depth: Tensor, axis: int, reach: int) -> Tensor:
    """Return the least over neighbours along an axis of their depth or, if larger, distance.

    Args:
        depth: (B, S, S, S).
        axis: Where the neighbours lie.
        reach: How far; negative for those before a voxel, positive for those behind it.
    """
    size, start = depth.shape[axis], max(-reach, 0)
    padded = _padded(depth, axis, start, max(reach, 0))
    for distance in range(1, abs(reach) + 1):
        shift = distance if reach > 0 else -distance
        neighbour = padded.narrow(axis, start + shift, size)
        depth = torch.minimum(depth, neighbour.clamp(min=distance))
    return depth


def _padded(grid: Tensor, axis: int, before: int, behind: int) -> Tensor:
    """Put planes of zeros before and behind an axis of (B, S, S, S)."""
    return functional.pad(grid, (0, 0) * (3 - axis) + (before, behind))


def next_clicks(mask: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Click into the error of each mask, deep inside it or anywhere in it.

    Args:
        mask: Current masks at half resolution, bool (B, S, S, S); all False for a first click.
        target: Targets at half resolution, bool, same shape.

    Returns:
        Points in ROI voxels, float32 (B, 3), and labels (B,): 1 where the target was missed, 0
        where the mask is wrong, -1 where there is no error.
    """
    batch, side = mask.shape[0], mask.shape[1]
    error = mask ^ target
    depth = erosion_depth(error)
    uniform = torch.rand_like(depth).clamp(1e-7, 1 - 1e-7)
    gumbel = -torch.log(-torch.log(uniform))
    central = torch.rand(batch, 1, 1, 1, device=mask.device) < CENTRAL_SHARE
    score = torch.where(central, 4.0 * depth, 0.0) + gumbel
    score = torch.where(error, score, -torch.inf).flatten(2)
    # Plane by plane: a compiler gives each row of such a search to one part of the device.
    best, place = score.max(2)
    plane = best.argmax(1, keepdim=True)
    index = (side**2 * plane + place.gather(1, plane))[:, 0]
    label = target.flatten(1).gather(1, index[:, None])[:, 0].float()
    label = torch.where(error.flatten(1).any(1), label, -1.0)
    cell = torch.stack((index // side**2, (index // side) % side, index % side), 1).float()
    return 2 * cell + torch.rand_like(cell).round(), label


def jittered_boxes(target: Tensor, *, jitter: float = 0.1) -> Tensor:
    """Return loose boxes around targets.

    Args:
        target: bool at half resolution, (B, S, S, S).
        jitter: Largest shift of each face over the extent of the box.

    Returns:
        Half-open boxes i0 j0 k0 i1 j1 k1 in ROI voxels, float32 (B, 6); zeros for empty targets.
    """
    batch, side = target.shape[0], target.shape[1]
    steps = torch.arange(side, device=target.device)
    starts: list[Tensor] = []
    stops: list[Tensor] = []
    for axis in (1, 2, 3):
        others = [a for a in (1, 2, 3) if a != axis]
        line = target.any(others[1]).any(others[0])
        starts.append(torch.where(line, steps, side).amin(1))
        stops.append(torch.where(line, steps + 1, 0).amax(1))
    start, stop = 2.0 * torch.stack(starts, 1), 2.0 * torch.stack(stops, 1)
    extent = stop - start
    shift = jitter * (2 * torch.rand(batch, 6, device=target.device) - 1)
    box = torch.cat((start + shift[:, :3] * extent, stop + shift[:, 3:] * extent), 1)
    return torch.where(stop[:, :1] > start[:, :1], box, 0.0)


def corrupted_masks(target: Tensor) -> Tensor:
    """Return plausible wrong earlier masks: grown or shrunk targets, half of them cut by a plane.

    Args:
        target: bool at half resolution, (B, S, S, S).

    Returns:
        bool, same shape.
    """
    batch, side, device = target.shape[0], target.shape[1], target.device
    grown = _grown(target, 2)
    shrunk = ~_grown(~target, 1)
    pick = torch.rand(batch, 1, 1, 1, 1, device=device)[:, 0]
    changed = torch.where(pick < 0.4, grown, torch.where(pick < 0.7, shrunk, target))
    step = torch.arange(side, device=device) - side / 2
    normal = torch.randn(batch, 3, 1, 1, 1, device=device)
    plane = normal[:, 0] * step[:, None, None] + normal[:, 1] * step[:, None] + normal[:, 2] * step
    plane = plane + 6 * torch.randn(batch, 1, 1, 1, device=device)
    cut = (torch.rand(batch, 1, 1, 1, device=device) < 0.5) & (plane > 0)
    return changed & ~cut


def _grown(region: Tensor, reach: int) -> Tensor:
    """Return the voxels with one of `region` within `reach` voxels along every axis, bool."""
    for axis in (1, 2, 3):
        padded = _padded(region, axis, reach, reach)
        for start in (*range(reach), *range(reach + 1, 2 * reach + 1)):
            region = region | padded.narrow(axis, start, region.shape[axis])
    return region
