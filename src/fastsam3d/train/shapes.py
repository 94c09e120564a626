"""Synthetic label maps: warped random regions with superellipsoids, shells and tubes drawn over.

Parameters are drawn on the CPU (`draw_shapes`), the map is filled on the GPU: `fill_labels` takes
the Triton kernel on CUDA and the readable reference elsewhere.

Coordinates: offsets from the ROI centre in units of half the ROI side, so about -1..1.
Shape legend: B volumes, K fields, F field grid side, P primitives, W warp grid side, S ROI side.

Source: random regions and shapes after AnyStar (arXiv 2307.07044) and PrimGeoSeg (2401.03665).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

REGION_ID0 = 256  # ids below belong to label maps of real scans
MAX_REGIONS = 12
PRIMITIVE_ID0 = REGION_ID0 + MAX_REGIONS
MAX_PRIMITIVES = 44
NUM_IDS = PRIMITIVE_ID0 + MAX_PRIMITIVES
FIELD_SIDE = 12
WARP_SIDE = 9
# One primitive: 9 inverse axes, 3 centre, half length, exponent, inner radius, draw-over flag.
PRIMITIVE_VALUES = 16
UNUSED_FIELD = -1.0e9
FAR = 100.0  # where the centres of unused primitives are: nothing there is drawn

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ShapesConfig:
    """Ranges of the synthetic shapes; lengths are fractions of half the ROI side.

    Attributes:
        num_blobs: Fewest and most superellipsoids of one volume.
        num_tubes: Fewest and most tubes.
        tube_segments: Segments of a tube.
        radius: Smallest and largest radius of a superellipsoid (log-uniform).
        tube_radius: The same for tubes.
        exponent: Range of the exponent (log-uniform): 2 is an ellipsoid, 6 nearly a box.
        share_shells: Share of superellipsoids that are hollow.
        share_nested: Share of superellipsoids placed inside an earlier one.
        share_centred: Share of volumes whose last primitive covers the ROI centre.
        warp: Largest standard deviation of the displacement of the warp grid.
    """

    num_blobs: tuple[int, int] = (4, 24)
    num_tubes: tuple[int, int] = (0, 3)
    tube_segments: int = 6
    radius: tuple[float, float] = (0.04, 0.7)
    tube_radius: tuple[float, float] = (0.015, 0.1)
    exponent: tuple[float, float] = (1.2, 6.0)
    share_shells: float = 0.12
    share_nested: float = 0.35
    share_centred: float = 0.6
    warp: float = 0.1


@dataclass(frozen=True)
class ShapeParameters:
    """Drawn shapes of B volumes.

    Attributes:
        primitives: float32 (B, P, PRIMITIVE_VALUES); unused rows have their centre at `FAR`.
        parents: int64 (B, P): index of the enclosing primitive, -1 for none.
        groups: int64 (B, P): first primitive of the same object; a tube is one object.
    """

    primitives: FloatArray
    parents: NDArray[np.int64]
    groups: NDArray[np.int64]


def draw_shapes(
    rng: np.random.Generator, count: int, config: ShapesConfig, *, num_empty: int = 0
) -> ShapeParameters:
    """Draw the primitives of `count` volumes, followed by some volumes that have none."""
    total = count + num_empty
    primitives = np.zeros((total, MAX_PRIMITIVES, PRIMITIVE_VALUES), np.float32)
    primitives[:, :, 9:12] = FAR
    parents = np.full((total, MAX_PRIMITIVES), -1, np.int64)
    groups = np.tile(np.arange(MAX_PRIMITIVES), (total, 1))
    for b in range(count):
        row = 0
        for _ in range(rng.integers(config.num_tubes[0], config.num_tubes[1] + 1)):
            segments = draw_tube(rng, config)
            primitives[b, row : row + len(segments)] = segments
            groups[b, row : row + len(segments)] = row
            row += len(segments)
        num_blobs = int(rng.integers(config.num_blobs[0], config.num_blobs[1] + 1))
        for n in range(min(num_blobs, MAX_PRIMITIVES - row)):
            centred = n == num_blobs - 1 and rng.random() < config.share_centred
            earlier = primitives[b, :row] if rng.random() < config.share_nested else None
            primitives[b, row], parents[b, row] = _blob(rng, config, earlier, centred=centred)
            row += 1
    return ShapeParameters(primitives, parents, groups)


def _rotation(rng: np.random.Generator) -> FloatArray:
    q, r = np.linalg.qr(rng.standard_normal((3, 3)))
    return (q * np.sign(np.diag(r))).astype(np.float32)


def log_uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    """Draw a positive number whose logarithm is uniform between those of `bounds`."""
    low, high = (float(np.log(bound)) for bound in bounds)
    return float(np.exp(rng.uniform(low, high)))


def _blob(
    rng: np.random.Generator, config: ShapesConfig, earlier: FloatArray | None, *, centred: bool
) -> tuple[FloatArray, int]:
    radius, parent = log_uniform(rng, config.radius), -1
    centre = rng.uniform(-1.05, 1.05, 3)
    if earlier is not None and len(earlier):
        parent = int(rng.integers(len(earlier)))
        inverse = earlier[parent, :9].reshape(3, 3)
        smallest = 1.0 / np.linalg.norm(inverse, axis=1).max()
        radius = smallest * rng.uniform(0.2, 0.7)
        centre = earlier[parent, 9:12] + rng.uniform(-0.4, 0.4, 3) * smallest
    axes = radius * np.exp(rng.uniform(-0.45, 0.45, 3))
    if centred:
        parent, centre = -1, rng.uniform(-0.5, 0.5, 3) * axes.min()
    inner = rng.uniform(0.55, 0.9) if rng.random() < config.share_shells else 0.0
    values = np.empty(PRIMITIVE_VALUES, np.float32)
    values[:9] = (_rotation(rng) / axes[:, None]).ravel()
    values[9:12] = centre
    values[12:] = (0.0, log_uniform(rng, config.exponent), inner, 0.0)
    return values, parent


def draw_tube(rng: np.random.Generator, config: ShapesConfig) -> FloatArray:
    """Draw the segments of a tube, primitives (segments, PRIMITIVE_VALUES)."""
    radius = log_uniform(rng, config.tube_radius)
    rows = np.empty((config.tube_segments, PRIMITIVE_VALUES), np.float32)
    at = rng.uniform(-0.8, 0.8, 3)
    heading = rng.standard_normal(3)
    for row in rows:
        heading = heading / np.linalg.norm(heading) + rng.normal(0, 0.45, 3)
        heading /= np.linalg.norm(heading)
        length = rng.uniform(0.15, 0.45)
        side = np.cross(heading, [1.0, 0.0, 0.0] if abs(heading[0]) < 0.7 else [0.0, 1.0, 0.0])
        side /= np.linalg.norm(side)
        frame = np.stack([heading, side, np.cross(heading, side)])
        row[:9] = (frame / radius).ravel()
        row[9:12] = at + heading * length / 2
        row[12:] = (length / 2 / radius, 2.0, 0.0, 0.0)
        at = at + heading * length
        radius *= rng.uniform(0.85, 1.05)
    return rows


def is_drawn(primitives: Tensor) -> Tensor:
    """Return which primitives (B, P, PRIMITIVE_VALUES) are used, bool (B, P)."""
    return primitives[:, :, 9] < FAR / 2


def fill_labels(
    base: Tensor, fields: Tensor, zoom: Tensor, warp: Tensor, primitives: Tensor
) -> Tensor:
    """Fill label maps: `base` where it is set, else the winning region, primitives drawn over.

    Args:
        base: Ids of a real label map, 0 where free, int16, shape (B, S, S, S).
        fields: Random fields, float32, shape (B, K, F, F, F); unused ones hold `UNUSED_FIELD`.
        zoom: Share of the field grid that the ROI spans, float32, shape (B,).
        warp: Displacements of the coordinates, float32, shape (B, 3, W, W, W).
        primitives: float32, shape (B, P, PRIMITIVE_VALUES), painted in order. A primitive covers
            set voxels of `base` only where its draw-over flag is set.

    Returns:
        Ids, int16, shape (B, S, S, S): base ids, REGION_ID0 + field, or PRIMITIVE_ID0 + row.
    """
    if base.is_cuda:
        from fastsam3d.train.shapes_kernel import fill_labels_cuda  # noqa: PLC0415 - needs Triton

        return fill_labels_cuda(base, fields, zoom, warp, primitives)
    return fill_labels_reference(base, fields, zoom, warp, primitives)


def fill_labels_reference(
    base: Tensor, fields: Tensor, zoom: Tensor, warp: Tensor, primitives: Tensor
) -> Tensor:
    """Do what `fill_labels` says, readably and slowly; the kernel is tested against it."""
    batch, side = base.shape[0], base.shape[1]
    axis = (torch.arange(side, device=base.device) - side / 2) * (2 / side)
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    at = grid.expand(batch, side, side, side, 3)
    at = at + _sample(warp, at).movedim(1, -1)
    values = _sample(fields, at * zoom.view(-1, 1, 1, 1, 1))
    labels = torch.where(base > 0, base, (REGION_ID0 + values.argmax(1)).to(base.dtype))
    for row in range(primitives.shape[1]):
        p = primitives[:, row].view(batch, 1, 1, 1, PRIMITIVE_VALUES)
        offset = at - p[..., 9:12]
        q = torch.einsum("bijkx,byx->bijky", offset, primitives[:, row, :9].view(batch, 3, 3)).abs()
        q = torch.cat(((q[..., :1] - p[..., 12:13]).clamp(min=0), q[..., 1:]), -1)
        reach = q.clamp(min=1e-6).pow(p[..., 13:14]).sum(-1)
        inside = (reach < 1) & (reach >= p[..., 14].pow(p[..., 13]))
        inside &= (base == 0) | (p[..., 15] > 0)
        labels = torch.where(inside, torch.full_like(labels, PRIMITIVE_ID0 + row), labels)
    return labels


def _sample(grid: Tensor, at: Tensor) -> Tensor:
    """Sample a small (B, C, G, G, G) grid trilinearly at `at` (B, S, S, S, 3) in -1..1."""
    return functional.grid_sample(grid, at.flip(-1), align_corners=True, padding_mode="border")
