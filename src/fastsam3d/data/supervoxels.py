"""Over-segment real images into pseudo-objects for prompted training.

Compiled libraries are loaded when first needed: only a pack's writer calls this.

A watershed on the gradient of the smoothed image gives basins; basins are merged pair by pair,
weakest boundary first, and every node of this merge tree is a candidate. Kept are the nodes whose
boundary is strong compared with their inside, without overlap, per range of sizes: one id map per
entry of `SCALES`.

Shapes: (I, J, K) of the working grid. Gradients are per voxel of the finest axis.

Source: watershed and region adjacency merging as in the scikit-image documentation; stability of a
node over the merge order as in MSER (Matas et al. 2002).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_CONTRAST = 1.0
BAND = 3.0
# A smoothed step of height h with sigma s has its steepest gradient h / (s * sqrt(2 pi)).
STEP_PER_GRADIENT = float(np.sqrt(2 * np.pi))


@dataclass(frozen=True, kw_only=True)
class SupervoxelConfig:
    """How regions are found.

    Attributes:
        sigma: Smoothing before the watershed, in voxels of the finest axis.
        min_share: Smallest region as a share of the foreground.
        max_share: Largest region as a share of the foreground.
        min_voxels: Smallest region in voxels.
        max_regions: Best regions kept.
    """

    sigma: float
    min_share: float
    max_share: float
    min_voxels: int = 27
    max_regions: int = 200


SCALES = (
    SupervoxelConfig(sigma=0.8, min_share=0.0, max_share=0.012),
    SupervoxelConfig(sigma=1.2, min_share=0.003, max_share=0.06, max_regions=60),
    SupervoxelConfig(sigma=1.8, min_share=0.02, max_share=0.4, max_regions=40),
)


@dataclass(kw_only=True)
class _Node:
    """A region of the merge tree with what is needed to judge it."""

    voxels: float
    total: float
    squares: float
    born: float
    leaves: list[int]
    edges: dict[int, tuple[float, float]] = field(default_factory=dict[int, tuple[float, float]])
    died: float = np.inf

    @property
    def mean(self) -> float:
        return self.total / self.voxels

    @property
    def std(self) -> float:
        return float(np.sqrt(max(self.squares / self.voxels - self.mean**2, 0.0)))

    @property
    def boundary(self) -> float:
        total = sum(edge[0] for edge in self.edges.values())
        return total / max(sum(edge[1] for edge in self.edges.values()), 1.0)


def supervoxels(
    image: NDArray[np.float32],
    foreground: NDArray[np.bool_],
    spacing: tuple[float, float, float],
    config: SupervoxelConfig,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Find regions with strong boundaries.

    Args:
        image: Intensities on a perceptually even scale, float32 (I, J, K).
        foreground: Where regions may lie (the body).
        spacing: Voxel size in mm; smoothing follows it.
        config: Scale and limits.

    Returns:
        An id map, uint8, 0 = none; and per id the boundary contrast over the interior standard
        deviation, float32 (number of regions,).
    """
    sigma = [config.sigma * min(spacing) / side for side in spacing]
    basins, smooth, gradient = _basins(image, foreground, sigma)
    scale = float(np.ptp(np.percentile(smooth[foreground], [1, 99]))) if foreground.any() else 0.0
    if scale <= 0:
        return np.zeros(image.shape, dtype=np.uint8), np.zeros(0, dtype=np.float32)
    tree = _merge_tree(basins, smooth, gradient * STEP_PER_GRADIENT * config.sigma)
    total = float(foreground.sum())
    low = max(config.min_voxels, config.min_share * total)
    chosen = _choose(tree, (low, config.max_share * total), 0.02 * scale, config.max_regions)
    lookup = np.zeros(int(basins.max()) + 1, dtype=np.uint8)
    for value, (node, _) in enumerate(chosen, start=1):
        lookup[node.leaves] = value
    return lookup[basins], np.array([score for _, score in chosen], dtype=np.float32)


def _basins(
    image: NDArray[np.float32], foreground: NDArray[np.bool_], sigma: list[float]
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
    ndimage: Any = import_module("scipy.ndimage")
    segmentation: Any = import_module("skimage.segmentation")
    smooth: NDArray[np.float32] = ndimage.gaussian_filter(image, sigma)
    finest = max(sigma)
    parts = [
        np.gradient(smooth, axis=a) * (s / finest)
        for a, s in enumerate(sigma)
        if smooth.shape[a] > 1
    ]
    gradient = np.sqrt(np.sum(np.square(parts), axis=0)).astype(np.float32)
    basins: NDArray[np.int32] = segmentation.watershed(gradient, mask=foreground)
    return basins.astype(np.int32), smooth, gradient


def _leaves(
    basins: NDArray[np.int32], smooth: NDArray[np.float32], gradient: NDArray[np.float32]
) -> dict[int, _Node]:
    flat, weight = basins.ravel(), smooth.ravel().astype(np.float64)
    voxels = np.bincount(flat)
    totals, squares = np.bincount(flat, weight), np.bincount(flat, weight**2)
    nodes = {
        i: _Node(voxels=float(voxels[i]), total=totals[i], squares=squares[i], born=0.0, leaves=[i])
        for i in range(1, len(voxels))
        if voxels[i]
    }
    for (a, b), edge in _edges(basins, gradient).items():
        if a:
            nodes[a].edges[b] = edge
        nodes[b].edges[a] = edge
    return nodes


def _edges(
    basins: NDArray[np.int32], gradient: NDArray[np.float32]
) -> dict[tuple[int, int], tuple[float, float]]:
    """Sum the gradient over the faces between each pair of basins (0 is the outside)."""
    keys: list[NDArray[np.int64]] = []
    weights: list[NDArray[np.float32]] = []
    width = int(basins.max()) + 1
    for axis in range(3):
        first = [slice(None)] * 3
        second = [slice(None)] * 3
        first[axis], second[axis] = slice(None, -1), slice(1, None)
        a, b = basins[tuple(first)], basins[tuple(second)]
        touch = a != b
        low, high = np.minimum(a, b)[touch], np.maximum(a, b)[touch]
        keys.append(low.astype(np.int64) * width + high)
        weights.append(np.maximum(gradient[tuple(first)], gradient[tuple(second)])[touch])
    unique, inverse = np.unique(np.concatenate(keys), return_inverse=True)
    total = np.bincount(inverse, np.concatenate(weights))
    count = np.bincount(inverse)
    return {
        (int(key // width), int(key % width)): (float(s), float(n))
        for key, s, n in zip(unique, total, count, strict=True)
    }


def _cost(a: _Node, b: _Node, edge: tuple[float, float]) -> float:
    """Price of a merge: mean difference and boundary, cheaper for small regions."""
    size = a.voxels * b.voxels / (a.voxels + b.voxels)
    return (abs(a.mean - b.mean) + edge[0] / edge[1]) * size**0.25


def _merge_tree(
    basins: NDArray[np.int32], smooth: NDArray[np.float32], gradient: NDArray[np.float32]
) -> list[_Node]:
    """Merge neighbours, cheapest first, and return all nodes of the tree."""
    alive = _leaves(basins, smooth, gradient)
    nodes = dict(alive)
    heap = [
        (_cost(node, alive[other], edge), name, other)
        for name, node in alive.items()
        for other, edge in node.edges.items()
        if name < other
    ]
    heapq.heapify(heap)
    fresh = max(alive, default=0) + 1
    while heap:
        cost, a, b = heapq.heappop(heap)
        if a not in alive or b not in alive:
            continue
        first, second = alive.pop(a), alive.pop(b)
        first.died = second.died = cost
        merged = _merge(first, second, (a, b), cost)
        alive[fresh] = nodes[fresh] = merged
        for other, edge in merged.edges.items():
            if other == 0:
                continue
            neighbour = alive[other]
            neighbour.edges.pop(a, None)
            neighbour.edges.pop(b, None)
            neighbour.edges[fresh] = edge
            heapq.heappush(heap, (_cost(merged, neighbour, edge), other, fresh))
        fresh += 1
    return list(nodes.values())


def _merge(first: _Node, second: _Node, names: tuple[int, int], cost: float) -> _Node:
    edges: dict[int, tuple[float, float]] = {}
    for node in (first, second):
        for other, edge in node.edges.items():
            if other not in names:
                old = edges.get(other, (0.0, 0.0))
                edges[other] = (old[0] + edge[0], old[1] + edge[1])
    return _Node(
        voxels=first.voxels + second.voxels,
        total=first.total + second.total,
        squares=first.squares + second.squares,
        born=cost,
        leaves=first.leaves + second.leaves,
        edges=edges,
    )


def _choose(
    tree: list[_Node], sizes: tuple[float, float], floor: float, most: int
) -> list[tuple[_Node, float]]:
    """Take the best nodes of every size without overlap.

    Sizes are cut into bands of a factor `BAND`; each band, largest first, gets an equal share of
    the `most` places, filled by contrast over inside times stability. Without bands the smallest
    regions, which are the most even inside, would take all places.
    """
    bands = max(1, int(np.ceil(np.log(max(sizes[1], 1.0) / sizes[0]) / np.log(BAND))))
    ranked: list[list[tuple[float, float, int]]] = [[] for _ in range(bands)]
    for index, node in enumerate(tree):
        if sizes[0] <= node.voxels < sizes[1]:
            score = node.boundary / (node.std + floor)
            stability = min(node.died / max(node.born, floor), 3.0)
            band = min(bands - 1, int(np.log(node.voxels / sizes[0]) / np.log(BAND)))
            if score > MIN_CONTRAST:
                ranked[band].append((score * stability, score, index))
    taken: set[int] = set()
    chosen: list[tuple[_Node, float]] = []
    for rank, candidates in enumerate(reversed(ranked)):
        places = (most - len(chosen)) // (bands - rank)
        for _, score, index in sorted(candidates, reverse=True):
            if places == 0:
                break
            node = tree[index]
            if taken.isdisjoint(node.leaves):
                taken.update(node.leaves)
                chosen.append((node, score))
                places -= 1
    return chosen


def foreground_mask(image: NDArray[np.float32], *, threshold: float) -> NDArray[np.bool_]:
    """Find the body: voxels above a threshold, holes closed, small islands dropped.

    Args:
        image: Intensities (I, J, K).
        threshold: Between air and tissue, in the unit of `image`.

    Returns:
        A mask; everything, when the threshold leaves less than 2 % of the volume.
    """
    ndimage: Any = import_module("scipy.ndimage")
    islands: NDArray[np.int32] = ndimage.label(ndimage.uniform_filter(image, 3) > threshold)[0]
    counts = np.bincount(islands.ravel())
    counts[0] = 0
    keep = counts >= max(1.0, 0.1 * counts.max())
    mask: NDArray[np.bool_] = keep[islands]
    for axis in range(3):
        mask = _fill_slices(mask, axis)
    return mask if mask.mean() >= 0.02 else np.ones(image.shape, dtype=np.bool_)


def _fill_slices(mask: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    ndimage: Any = import_module("scipy.ndimage")
    slices = np.moveaxis(mask, axis, 0)
    filled: list[NDArray[np.bool_]] = [ndimage.binary_fill_holes(one) for one in slices]
    return np.moveaxis(np.stack(filled), 0, axis)
