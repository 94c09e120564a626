"""Simulated scribbles on the device, batched, without waiting for it.

A user who corrects a mask draws a short curve inside a mistake, mostly on one slice. The curve is a
walk on the half grid that keeps its heading, turns where the mistake ends, and never leaves it. It
is given to the model as points along the curve or as a dense map. All shapes are fixed, so that the
functions compile; random numbers come from the device's generator.

Shape legend: B prompt sets, N cells of the path, P points, S side of the half-resolution grid.

Source: correction scribbles inside error regions as in ScribblePrompt (arXiv 2312.07381).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastsam3d.train.clicks import next_clicks

PADDING_LABEL = -1.0


@dataclass(frozen=True, kw_only=True)
class ScribbleConfig:
    """How scribbles are drawn; lengths in cells of the half grid (two ROI voxels).

    Attributes:
        num_steps: Steps of the longest scribble.
        min_steps: Steps of the shortest one, if the mistake has room.
        step: Length of a step.
        wander: Standard deviation that a step adds to each component of the unit heading.
        num_tries: Headings that a step tries: going on, then turns at random.
        share_planar: Share of scribbles that stay on one slice of the ROI.
    """

    num_steps: int = 20
    min_steps: int = 4
    step: float = 1.0
    wander: float = 0.3
    num_tries: int = 5
    share_planar: float = 0.75


class Scribbles(NamedTuple):
    """One scribble per prompt set.

    Attributes:
        path: Cells of the half grid that it runs through, int64 (B, N, 3); it may rest on a cell.
        labels: (B,): 1 where the target was missed, 0 where the mask is wrong, -1 where there is
            no mistake; the path then means nothing.
    """

    path: Tensor
    labels: Tensor


DEFAULT_CONFIG = ScribbleConfig()


def draw_scribbles(
    mask: Tensor, target: Tensor, *, config: ScribbleConfig = DEFAULT_CONFIG
) -> Scribbles:
    """Draw one scribble into the mistakes of each mask.

    It begins where `fastsam3d.train.clicks.next_clicks` would click, and stays in mistakes of the
    same kind: missed target for a positive scribble, wrong mask for a negative one.

    Args:
        mask: Current masks at half resolution, bool (B, S, S, S); all False at first.
        target: Targets at half resolution, bool, same shape.
        config: Length and shape of the curves.
    """
    points, labels = next_clicks(mask, target)
    is_missed = (labels == 1)[:, None, None, None]
    region = torch.where(is_missed, target & ~mask, mask & ~target)
    at = torch.div(points, 2, rounding_mode="floor")
    batch, device = at.shape[0], at.device
    flat = _planes(batch, config.share_planar, device)
    heading = _unit(torch.randn(batch, 3, device=device) * flat)
    spread = config.num_steps + 1 - config.min_steps
    length = config.min_steps + torch.floor(spread * torch.rand(batch, device=device))
    cells = [at]
    for number in range(config.num_steps):
        moved, turned = _next_cell(at, heading, region, flat, config)
        is_drawing = (length > number)[:, None]
        at = torch.where(is_drawing, moved, at)
        heading = torch.where(is_drawing, turned, heading)
        cells.append(at)
    return Scribbles(torch.stack(cells, 1).round().long(), labels)


def scribble_points(scribbles: Scribbles, num_points: int) -> tuple[Tensor, Tensor]:
    """Return points along scribbles, its first cell first, evenly spread.

    Args:
        scribbles: From `draw_scribbles`.
        num_points: P, at most the cells of a path.

    Returns:
        Points in ROI voxels, float32 (B, P, 3), each at random within its cell, and labels (B, P):
        that of the scribble, or -1 where the point before lies in the same cell.
    """
    count = scribbles.path.shape[1]
    picks = [round(n * (count - 1) / max(num_points - 1, 1)) for n in range(num_points)]
    cells = scribbles.path[:, picks]
    rests = (cells[:, 1:] == cells[:, :-1]).all(-1)
    labels = scribbles.labels[:, None].expand(-1, num_points)
    tail = torch.where(rests, PADDING_LABEL, labels[:, 1:])
    points = 2 * cells.float() + torch.rand(cells.shape, device=cells.device).round()
    return points, torch.cat((labels[:, :1], tail), 1)


def scribble_maps(scribbles: Scribbles, side: int) -> tuple[Tensor, Tensor]:
    """Return scribbles as maps.

    Args:
        scribbles: From `draw_scribbles`.
        side: S.

    Returns:
        Cells of positive and of negative scribbles, bool (B, S, S, S) each.
    """
    path, labels = scribbles
    batch = path.shape[0]
    index = (path[..., 0] * side + path[..., 1]) * side + path[..., 2]
    drawn = torch.zeros(batch, side**3, dtype=torch.bool, device=path.device)
    drawn = drawn.scatter(1, index, torch.ones_like(index, dtype=torch.bool))
    drawn = drawn.view(batch, side, side, side)
    positive, negative = (drawn & (labels == value)[:, None, None, None] for value in (1.0, 0.0))
    return positive, negative


def _next_cell(
    at: Tensor, heading: Tensor, region: Tensor, flat: Tensor, config: ScribbleConfig
) -> tuple[Tensor, Tensor]:
    """Return the first tried place (B, 3) inside the region, else the old one, and its heading."""
    batch, tries = at.shape[0], config.num_tries
    noise = torch.randn(batch, tries, 3, device=at.device)
    # The first try goes on nearly straight; later ones turn more and more freely.
    freedom = torch.linspace(1.0, 8.0, tries, device=at.device)[:, None]
    headings = _unit((heading[:, None] + config.wander * freedom * noise) * flat[:, None])
    places = at[:, None] + config.step * headings
    side = region.shape[1]
    cell = places.round().long()
    is_inside = ((cell >= 0) & (cell < side)).all(-1)
    cell = cell.clamp(0, side - 1)
    index = (cell[..., 0] * side + cell[..., 1]) * side + cell[..., 2]
    is_inside = is_inside & region.flatten(1).gather(1, index)
    order = torch.arange(tries, device=at.device)
    first = torch.where(is_inside, order, tries).amin(1)
    pick = first.clamp(max=tries - 1)[:, None, None].expand(-1, 1, 3)
    found = (first < tries)[:, None]
    moved = torch.where(found, places.gather(1, pick)[:, 0], at)
    return moved, torch.where(found, headings.gather(1, pick)[:, 0], -heading)


def _planes(batch: int, share: float, device: torch.device) -> Tensor:
    """Return which axes each scribble may move along, float (B, 3)."""
    axis = torch.floor(3 * torch.rand(batch, 1, device=device)).clamp(max=2)
    is_planar = torch.rand(batch, 1, device=device) < share
    is_fixed = is_planar & (torch.arange(3, device=device) == axis)
    return (~is_fixed).float()


def _unit(vectors: Tensor) -> Tensor:
    length = vectors.square().sum(-1, keepdim=True).sqrt()
    return vectors / length.clamp(min=1e-6)
