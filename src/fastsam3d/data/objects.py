"""Objects in label maps: connected components, their extents and seed voxels.

A component-id map gives every connected component of every label an id of its own (0 is
background), so one uint8 volume holds all targets of a case. `object_table` needs only numpy and
is recomputed when a pack is loaded; `component_ids` and `deep_seeds` run when a pack is written
and load compiled libraries for it.

Arrays are (I, J, K) voxels; spacing and extents are in mm.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_COMPONENT_VOXELS = 30
MAX_UINT8_ID = 255
DEEP_CANDIDATES = 2000


@dataclass(frozen=True, kw_only=True)
class ObjectTable:
    """The objects of one id map, one row per object.

    Attributes:
        ids: Values in the map, int32 (N,).
        voxels: Voxel counts, int64 (N,).
        start: First voxel of the bounding box, int32 (N, 3).
        stop: One past the last voxel of the bounding box, int32 (N, 3).
        extent_mm: Sides of the bounding box in mm, float32 (N, 3).
        seeds: Voxels drawn uniformly in the object, int16 (N, S, 3).
    """

    ids: NDArray[np.int32]
    voxels: NDArray[np.int64]
    start: NDArray[np.int32]
    stop: NDArray[np.int32]
    extent_mm: NDArray[np.float32]
    seeds: NDArray[np.int16]

    def __len__(self) -> int:
        """Return the number of objects."""
        return len(self.ids)


def object_table(
    id_map: NDArray[Any], spacing: tuple[float, float, float], *, num_seeds: int, seed: int = 0
) -> ObjectTable:
    """Measure every object of an id map and draw seed voxels in it.

    Args:
        id_map: Ids on the grid, unsigned integers (I, J, K); 0 is background.
        spacing: Voxel size in mm.
        num_seeds: Uniformly drawn voxels per object (with repetition in tiny objects).
        seed: Of the drawing; the same seed gives the same voxels.

    Returns:
        The table, ordered by id.
    """
    flat = np.flatnonzero(id_map)
    values = id_map.ravel()[flat]
    order = np.argsort(values, kind="stable")
    flat, values = flat[order], values[order]
    starts = np.flatnonzero(np.diff(values, prepend=values.dtype.type(0)))
    ends = np.append(starts[1:], len(values))
    coordinates = np.stack(np.unravel_index(flat, id_map.shape), axis=1).astype(np.int32)
    if len(starts) == 0:
        return _empty_table(num_seeds)
    low = np.minimum.reduceat(coordinates, starts, axis=0)
    high = np.maximum.reduceat(coordinates, starts, axis=0) + 1
    draw = np.random.default_rng(seed).random((len(starts), num_seeds))
    picks = starts[:, None] + (draw * (ends - starts)[:, None]).astype(np.int64)
    return ObjectTable(
        ids=values[starts].astype(np.int32),
        voxels=(ends - starts).astype(np.int64),
        start=low,
        stop=high.astype(np.int32),
        extent_mm=((high - low) * np.asarray(spacing)).astype(np.float32),
        seeds=coordinates[picks].astype(np.int16),
    )


def component_ids(labels: NDArray[Any]) -> tuple[NDArray[Any], list[int]]:
    """Give every connected component (26 neighbours) of every label value its own id.

    Components under `MIN_COMPONENT_VOXELS` take the id of the largest component of their label, so
    that no truth is lost; if there are more than 255 components the limit grows, and only when
    there are more than 255 label values does the map become uint16.

    Args:
        labels: Label values (I, J, K), unsigned integers, 0 is background.

    Returns:
        The id map (uint8 or uint16), and the label value of id 1, 2, ... in this order.
    """
    components, values, counts = _components(labels)
    limit = MIN_COMPONENT_VOXELS
    while True:
        lookup, id_values = _merge_specks(values, counts, limit)
        if len(id_values) <= MAX_UINT8_ID or len(id_values) == len(np.unique(values[1:])):
            break
        limit *= 2
    dtype = np.uint8 if len(id_values) <= MAX_UINT8_ID else np.uint16
    return lookup.astype(dtype)[components], id_values


def deep_seeds(
    id_map: NDArray[Any], table: ObjectTable, spacing: tuple[float, float, float], count: int
) -> NDArray[np.int16]:
    """Find voxels deep inside each object and far from each other.

    Args:
        id_map: The map that `table` was made from.
        table: Its objects.
        spacing: Voxel size in mm.
        count: Seeds per object; tiny objects repeat some.

    Returns:
        Voxel coordinates, int16 (N, count, 3); the first is the centre of the largest ball.
    """
    edt: Any = import_module("edt")
    depth: NDArray[np.float32] = edt.edt(
        np.ascontiguousarray(id_map), anisotropy=spacing, black_border=True, parallel=1
    )
    seeds = np.zeros((len(table), count, 3), dtype=np.int16)
    for row, value in enumerate(table.ids):
        box = tuple(slice(a, b) for a, b in zip(table.start[row], table.stop[row], strict=True))
        inside = np.argwhere(id_map[box] == value)
        local = depth[box][tuple(inside.T)]
        seeds[row] = _spread(inside, local, np.asarray(spacing), count) + table.start[row]
    return seeds


def _empty_table(num_seeds: int) -> ObjectTable:
    box = np.zeros((0, 3), dtype=np.int32)
    return ObjectTable(
        ids=np.zeros(0, dtype=np.int32),
        voxels=np.zeros(0, dtype=np.int64),
        start=box,
        stop=box,
        extent_mm=box.astype(np.float32),
        seeds=np.zeros((0, num_seeds, 3), dtype=np.int16),
    )


def _components(
    labels: NDArray[Any],
) -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.int64]]:
    """Label components; return their map, label value and voxel count (index 0 is background)."""
    cc3d: Any = import_module("cc3d")
    found: NDArray[np.uint32] = cc3d.connected_components(labels, connectivity=26)
    counts = np.bincount(found.ravel())
    values = np.zeros(len(counts), dtype=np.int64)
    values[found.ravel()] = labels.ravel()
    return found, values, counts


def _merge_specks(
    values: NDArray[np.int64], counts: NDArray[np.int64], limit: int
) -> tuple[NDArray[np.int64], list[int]]:
    lookup = np.zeros(len(values), dtype=np.int64)
    id_values: list[int] = []
    for value in np.unique(values[1:]):
        members = np.flatnonzero(values == value)
        members = members[members > 0]
        largest = members[np.argmax(counts[members])]
        main_id = 0
        for member in [largest, *(m for m in members if m != largest)]:
            if member != largest and counts[member] < limit:
                lookup[member] = main_id
                continue
            id_values.append(int(value))
            lookup[member] = len(id_values)
            main_id = main_id or len(id_values)
    return lookup, id_values


def _spread(
    inside: NDArray[np.int64], depth: NDArray[np.float32], spacing: NDArray[np.float64], count: int
) -> NDArray[np.int64]:
    keep = np.flatnonzero(depth >= 0.5 * depth.max())
    if len(keep) > DEEP_CANDIDATES:
        keep = np.append(keep[:: -(-len(keep) // DEEP_CANDIDATES)], np.argmax(depth))
    voxels, depths = inside[keep], depth[keep]
    millimetres = voxels * spacing
    picks = [int(np.argmax(depths))]
    nearest = np.linalg.norm(millimetres - millimetres[picks[0]], axis=1)
    apart = 0.25 * float((np.ptp(millimetres, axis=0)).max())
    while len(picks) < count:
        free = nearest > apart
        if free.any():
            pick = int(np.argmax(np.where(free, depths, -1.0)))
            nearest = np.minimum(nearest, np.linalg.norm(millimetres - millimetres[pick], axis=1))
        elif apart > 0.5 * spacing.min():
            apart *= 0.5
            continue
        else:
            pick = picks[len(picks) % max(1, len(set(picks)))]
        picks.append(pick)
    return voxels[picks]
