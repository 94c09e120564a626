"""Which parts of a mask a click belongs to, without the 0.2 s that importing scipy takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bits = NDArray[np.bool_]

_NEIGHBOURS = ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:]))


def connected_to(mask_IJK: Bits, seeds: NDArray[np.intp]) -> Bits:
    """Return the parts of a mask, connected over faces, that hold a seed.

    Source: lines of foreground along k are numbered, and the numbers of lines that touch are
    joined: the minimum of both is hooked to the other's root, then paths are compressed
    (Shiloach and Vishkin, J. Algorithms 3, 1982).

    Args:
        mask_IJK: Any shape.
        seeds: Voxels of the mask, all foreground, shape (N, 3), N at least 1.

    Returns:
        As `scipy.ndimage.label` finds them; same shape.
    """
    box = bounding_box(mask_IJK)
    inside = mask_IJK[box]
    lines = np.cumsum(_first_of_each(inside), dtype=np.int32).reshape(inside.shape) - 1
    roots = _joined(_touching(inside, lines), int(lines[-1, -1, -1]) + 1)
    is_hit = np.zeros(len(roots), np.bool_)
    is_hit[roots[lines[tuple((seeds - [side.start for side in box]).T)]]] = True
    parts = np.zeros_like(mask_IJK)
    np.logical_and(inside, is_hit[roots][lines], out=parts[box])
    return parts


def bounding_box(mask_IJK: Bits) -> tuple[slice, slice, slice]:
    """Return the smallest box around what is set in a mask; something must be."""
    seen_JK: Bits = np.any(mask_IJK, axis=0)
    planes: tuple[Bits, ...] = (
        np.any(mask_IJK, axis=(1, 2)),
        np.any(seen_JK, axis=1),
        np.any(seen_JK, axis=0),
    )
    i, j, k = (np.flatnonzero(plane)[[0, -1]] + [0, 1] for plane in planes)
    return slice(*i.tolist()), slice(*j.tolist()), slice(*k.tolist())


def _first_of_each(mask_IJK: Bits) -> Bits:
    """Return the first voxel of each line of foreground along k."""
    first = mask_IJK.copy()
    first[..., 1:] &= ~mask_IJK[..., :-1]
    return first


def _touching(mask_IJK: Bits, lines: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the numbers of lines that touch along i or j, each pair once, shape (2, N)."""
    pairs: list[Any] = []
    for low, high in _NEIGHBOURS:
        is_pair = _first_of_each(mask_IJK[low] & mask_IJK[high])
        pairs.append(np.stack((lines[low][is_pair], lines[high][is_pair])))
    return np.concatenate(pairs, axis=1)


def _joined(pairs: NDArray[np.int32], count: int) -> NDArray[np.intp]:
    """Return for each of `count` numbers the root of its part."""
    roots = np.arange(count)
    while pairs.size:
        found = roots[pairs]
        is_apart = found[0] != found[1]
        pairs, found = pairs[:, is_apart], found[:, is_apart]
        np.minimum.at(roots, found.max(axis=0), found.min(axis=0))
        while not np.array_equal(roots, further := roots[roots]):
            roots = further
    return roots
