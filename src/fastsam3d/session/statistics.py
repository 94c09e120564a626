"""What an object measures: volume, diameters, intensities.

A mask's surface runs between voxel centres, half-way from an inner to an outer voxel; diameters
are taken between points of that surface, so that one voxel is as long as its side, and are right
to about a voxel.
All lengths use the volume's own axes, sheared ones included.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from fastsam3d.session.postprocess import voxel_ml

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastsam3d.session.object_mask import ObjectMask
    from fastsam3d.volume import Geometry, Volume

    Points = NDArray[np.float64]
    World = tuple[float, float, float]

PERCENTILES: Final = (5, 25, 50, 75, 95)
_ROWS_AT_ONCE: Final = 512


@dataclass(frozen=True)
class Diameter:
    """A straight distance between two points of a surface.

    Attributes:
        mm: Its length.
        ends: Both points, RAS+ millimetres.
    """

    mm: float
    ends: tuple[World, World]


@dataclass(frozen=True)
class AxialDiameters:
    """The largest extent on one axial slice and that across it, as response criteria measure.

    Attributes:
        slice_index: Index along the array axis nearest to the axial one; that of the slice with
            the longest diameter.
        long: The longest diameter on that slice.
        short_mm: The longest chord perpendicular to it, on the same slice, between its outer ends.
    """

    slice_index: int
    long: Diameter
    short_mm: float


@dataclass(frozen=True)
class IntensityStatistics:
    """Intensities under a mask, in the volume's own units.

    Attributes:
        mean: Arithmetic mean.
        sd: Standard deviation of all voxels (divided by their number).
        minimum: Smallest.
        maximum: Largest.
        percentiles: By percentage, `PERCENTILES`, linearly interpolated.
    """

    mean: float
    sd: float
    minimum: float
    maximum: float
    percentiles: dict[int, float]


@dataclass(frozen=True)
class ObjectStatistics:
    """Everything measured on one object; the parts are None where it has no voxel.

    Attributes:
        num_voxels: Voxels of the volume.
        volume_ml: Millilitres.
        longest: Longest diameter in 3-D.
        axial: Diameters on an axial slice.
        intensity: Of the volume under the mask.
    """

    num_voxels: int
    volume_ml: float
    longest: Diameter | None
    axial: AxialDiameters | None
    intensity: IntensityStatistics | None


def measure_object(mask: ObjectMask, volume: Volume) -> ObjectStatistics:
    """Measure a mask on its volume."""
    count = mask.num_voxels
    if not count:
        return ObjectStatistics(0, 0.0, None, None, None)
    return ObjectStatistics(
        num_voxels=count,
        volume_ml=count * voxel_ml(volume.geometry),
        longest=_longest(mask, volume.geometry),
        axial=_axial(mask, volume.geometry),
        intensity=_intensity(volume.array[mask.region.slices][mask.array]),
    )


def _intensity(values: NDArray[Any]) -> IntensityStatistics:
    found = np.percentile(values, PERCENTILES).tolist()
    return IntensityStatistics(
        mean=float(values.mean(dtype=np.float64)),
        sd=float(values.std(dtype=np.float64)),
        minimum=float(values.min()),
        maximum=float(values.max()),
        percentiles=dict(zip(PERCENTILES, found, strict=True)),
    )


def _longest(mask: ObjectMask, geometry: Geometry) -> Diameter:
    surface = np.concatenate([_outer_faces(mask.array, axis) for axis in range(3)])
    at = geometry.voxel_to_world(surface + mask.region.start)
    return _diameter(at[_hull(at)])


def _axial(mask: ObjectMask, geometry: Geometry) -> AxialDiameters:
    axis = geometry.canonical_reorder().permutation[2]
    u, v = (other for other in range(3) if other != axis)
    # An isometry of the slice onto a plane, also where its axes are not perpendicular.
    onto_plane: Points = np.linalg.qr(geometry.affine[:3, (u, v)])[1].T
    best: tuple[float, int, Points, Points] | None = None
    for index, inside in enumerate(np.moveaxis(mask.array, axis, 0)):
        if not inside.any():
            continue
        edge = np.concatenate([_outer_faces(inside, line) for line in (0, 1)])
        flat = edge @ onto_plane
        ends = _farthest(flat[_hull(flat)])
        length = float(np.linalg.norm(ends[1] - ends[0]))
        if best is None or length > best[0] * (1 + 1e-9):
            best = length, index, flat, ends
    assert best is not None  # noqa: S101 - the mask is cropped to its foreground
    length, index, flat, ends = best
    in_slice = ends @ np.linalg.inv(onto_plane)
    voxels = np.insert(in_slice, axis, index, axis=1) + mask.region.start
    step = min(geometry.spacing[u], geometry.spacing[v])
    return AxialDiameters(
        slice_index=index + mask.region.start[axis],
        long=Diameter(length, _pair(geometry.voxel_to_world(voxels))),
        short_mm=_longest_chord_across(flat, ends, step),
    )


def _longest_chord_across(flat: Points, ends: Points, step: float) -> float:
    """Return the largest distance across a line between edge points at the same place along it."""
    along = (ends[1] - ends[0]) / np.linalg.norm(ends[1] - ends[0])
    across = np.array([-along[1], along[0]])
    places = np.floor((flat - ends[0]) @ along / step).astype(np.int64)
    places -= places.min()
    heights = flat @ across
    top = np.full(places.max() + 1, -np.inf)
    bottom = np.full(places.max() + 1, np.inf)
    np.maximum.at(top, places, heights)
    np.minimum.at(bottom, places, heights)
    return float((top - bottom)[np.isfinite(top)].max())


def _outer_faces(inside: NDArray[np.bool_], axis: int) -> Points:
    """Return the first and the last face of the mask on each line along an axis, in voxels.

    Only these can lie on the convex hull.
    """
    lines = np.argwhere(inside.any(axis=axis))
    first = inside.argmax(axis=axis)[tuple(lines.T)]
    flipped = np.flip(inside, axis=axis).argmax(axis=axis)[tuple(lines.T)]
    last = inside.shape[axis] - 1 - flipped
    faces = [np.insert(lines.astype(np.float64), axis, at, axis=1)
             for at in (first - 0.5, last + 0.5)]  # fmt: skip
    return np.concatenate(faces)


def _hull(points: Points) -> NDArray[np.int_]:
    spatial: Any = import_module("scipy.spatial")  # Late: only statistics need it.
    return cast("NDArray[np.int_]", spatial.ConvexHull(points).vertices)


def _farthest(points: Points) -> Points:
    """Return the two points that are farthest apart, (2, D)."""
    best, pair = -1.0, (0, 0)
    for start in range(0, len(points), _ROWS_AT_ONCE):
        rows = points[start : start + _ROWS_AT_ONCE]
        distance = np.square(rows[:, None] - points[None]).sum(axis=-1)
        at = int(distance.argmax())
        if distance.flat[at] > best:
            best = float(distance.flat[at])
            pair = (start + at // len(points), at % len(points))
    return points[list(pair)]


def _diameter(points: Points) -> Diameter:
    ends = _farthest(points)
    length = float(np.linalg.norm(ends[1] - ends[0]))
    return Diameter(length, _pair(ends))


def _pair(ends: Points) -> tuple[World, World]:
    a, b = cast("list[list[float]]", ends.tolist())
    return (a[0], a[1], a[2]), (b[0], b[1], b[2])
