"""Find bones and air spaces of a CT by their intensities, each an object of its own.

Nobody has labelled the bones of the training scans, but Hounsfield units tell bone and air from all
else. What has to be found is where one bone ends: a mask is cut at its necks, places much narrower
than what lies on both sides of them.

Compiled libraries are loaded when first needed: only a pack's writer calls this. Arrays are
(I, J, K), axes closest to RAS, intensities in Hounsfield units, lengths in mm.

Source: watershed of the depth below the surface, as in the scikit-image documentation; basins are
joined again by the width of the neck between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsam3d.data.objects import MAX_UINT8_ID

Spacing = tuple[float, float, float]

AXIAL = 2


@dataclass(frozen=True, kw_only=True)
class MarrowRule:
    """Which holes in the bone of a slice are marrow.

    Attributes:
        any_cm2: All up to this area.
        most_cm2: Up to this area those
        other_hu: whose mean does not lie between these two.
    """

    any_cm2: float
    most_cm2: float
    other_hu: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class AnatomyConfig:
    """What counts as bone and air, and where they are cut.

    Attributes:
        bone_hu: Bone is at least this dense.
        air_hu: Air is at most this dense.
        closing_mm: Gaps of cortical bone up to twice this are closed before marrow is filled.
        axial: What is marrow in axial slices, where shafts are rings, and the spinal canal is one.
        upright: The same in sagittal and coronal ones, where discs lie between vertebrae.
        bone_neck: Basins are one object if their neck is at least this part of the shallower
            one's depth.
        air_neck: The same for air; vessels cut lungs into basins.
        min_depth_mm: Thinner objects are dropped.
        min_ml: Smaller objects are dropped.
        most: Largest objects kept, of bone and of air each.
        most_bone: Where more of the body is as dense as bone, the intensities are no Hounsfield
            units, whatever they are said to be, and nothing is found.
        coarsest_mm: Nothing is found either where voxels are larger than this in axial slices.
    """

    bone_hu: float = 170.0
    air_hu: float = -500.0
    closing_mm: float = 1.5
    axial: MarrowRule = MarrowRule(any_cm2=1.8, most_cm2=8.0, other_hu=(0.0, 50.0))
    upright: MarrowRule = MarrowRule(any_cm2=0.4, most_cm2=8.0, other_hu=(-10.0, 130.0))
    bone_neck: float = 0.72
    air_neck: float = 0.4
    min_depth_mm: float = 2.0
    min_ml: float = 1.5
    most: int = 110
    most_bone: float = 0.5
    coarsest_mm: float = 2.6


def anatomy_objects(
    image: NDArray[np.float32],
    body: NDArray[np.bool_],
    spacing: Spacing,
    config: AnatomyConfig | None = None,
) -> NDArray[np.uint8]:
    """Return an id map of bones and air spaces, 0 = none, those of bone first.

    Args:
        image: Intensities.
        body: Where objects may lie.
        spacing: Voxel size.
        config: What counts.
    """
    chosen = config or AnatomyConfig()
    found = np.zeros(image.shape, np.uint8)
    is_dense = (image > chosen.bone_hu) & body
    if is_dense.sum() > chosen.most_bone * body.sum() or max(spacing[:AXIAL]) > chosen.coarsest_mm:
        return found
    bone = parts_of(_bones(image, spacing, chosen) & body, spacing, chosen.bone_neck, chosen)
    air = parts_of((image < chosen.air_hu) & body, spacing, chosen.air_neck, chosen)
    for parts in (bone, air):
        first = int(found.max())
        count = min(int(parts.max()), MAX_UINT8_ID - first)
        is_new = (parts > 0) & (parts <= count) & (found == 0)
        found[is_new] = parts[is_new] + first
    return found


def parts_of(
    mask: NDArray[np.bool_], spacing: Spacing, neck: float, config: AnatomyConfig
) -> NDArray[np.uint16]:
    """Cut a mask at its necks; return ids from 1, largest part first."""
    edt: Any = import_module("edt")
    segmentation: Any = import_module("skimage.segmentation")
    ndimage: Any = import_module("scipy.ndimage")
    depth: NDArray[np.float32] = edt.edt(
        np.ascontiguousarray(mask), anisotropy=spacing, black_border=False, parallel=1
    )
    # Steps of the grid would make basins of their own; half a voxel of blur takes them away.
    smooth = ndimage.gaussian_filter(depth, [0.5 * max(spacing) / side for side in spacing])
    basins = segmentation.watershed(-smooth, mask=mask).astype(np.int32)
    count = int(basins.max()) + 1
    deepest = np.zeros(count, np.float32)
    np.maximum.at(deepest, basins.ravel(), depth.ravel())
    owner, depth_of = _joined(basins, depth, deepest, neck)
    joined = owner[basins]
    joined[~mask] = 0
    voxels = np.bincount(joined.ravel(), minlength=count)
    least = config.min_ml * 1000 / float(np.prod(spacing))
    is_kept = (voxels >= least) & (depth_of >= config.min_depth_mm)
    is_kept[0] = False
    order = [int(n) for n in np.argsort(-voxels) if is_kept[n]][: config.most]
    lookup = np.zeros(count, np.uint16)
    lookup[order] = np.arange(1, len(order) + 1)
    return lookup[joined]


def _joined(
    basins: NDArray[np.int32],
    depth: NDArray[np.float32],
    deepest: NDArray[np.float32],
    neck: float,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Join basins with wide necks, widest first.

    Returns:
        Which basin each belongs to, and how deep those are that others belong to.
    """
    owner = np.arange(len(deepest))
    depth_of = deepest.copy()

    def root(index: int) -> int:
        while owner[index] != index:
            owner[index] = owner[owner[index]]
            index = int(owner[index])
        return index

    for a, b, width in sorted(_necks(basins, depth), key=lambda one: -one[2]):
        first, second = root(a), root(b)
        if first == second:
            continue
        if width >= neck * min(depth_of[first], depth_of[second]):
            owner[second] = first
            depth_of[first] = max(depth_of[first], depth_of[second])
    return np.array([root(index) for index in range(len(owner))]), depth_of


def _necks(
    basins: NDArray[np.int32], depth: NDArray[np.float32]
) -> Iterator[tuple[int, int, float]]:
    """Yield the pairs of basins that touch, with the greatest depth on their common face."""
    keys: list[NDArray[np.int64]] = []
    depths: list[NDArray[np.float32]] = []
    width = int(basins.max()) + 1
    for axis in range(3):
        lower, upper = np.moveaxis(basins, axis, 0)[:-1], np.moveaxis(basins, axis, 0)[1:]
        touch = (lower != upper) & (lower > 0) & (upper > 0)
        low, high = np.minimum(lower, upper)[touch], np.maximum(lower, upper)[touch]
        keys.append(low.astype(np.int64) * width + high)
        turned = np.moveaxis(depth, axis, 0)
        depths.append(np.minimum(turned[:-1], turned[1:])[touch])
    key, value = np.concatenate(keys), np.concatenate(depths)
    order = np.argsort(key, kind="stable")
    key, value = key[order], value[order]
    starts = np.flatnonzero(np.diff(key, prepend=-1))
    if not len(starts):
        return
    for pair, most in zip(key[starts], np.maximum.reduceat(value, starts), strict=True):
        yield int(pair // width), int(pair % width), float(most)


def _bones(
    image: NDArray[np.float32], spacing: Spacing, config: AnatomyConfig
) -> NDArray[np.bool_]:
    """Return dense voxels with the marrow that they enclose in slices."""
    ndimage: Any = import_module("scipy.ndimage")
    dense = image > config.bone_hu
    closed = _closed(dense, spacing, config.closing_mm)
    found = dense.copy()
    for axis in range(3):
        sides = [side for other, side in enumerate(spacing) if other != axis]
        rule = config.axial if axis == AXIAL else config.upright
        small, large = (a * 100 / (sides[0] * sides[1]) for a in (rule.any_cm2, rule.most_cm2))
        slices = zip(
            np.moveaxis(closed, axis, 0),
            np.moveaxis(image, axis, 0),
            np.moveaxis(found, axis, 0),
            strict=True,
        )
        for wall, values, filled in slices:
            holes, count = ndimage.label(ndimage.binary_fill_holes(wall) & ~wall)
            if not count:
                continue
            voxels = np.bincount(holes.ravel())
            mean = np.bincount(holes.ravel(), values.ravel()) / np.maximum(voxels, 1)
            low, high = rule.other_hu
            is_marrow = (voxels <= large) & ((mean < low) | (mean > high)) | (voxels <= small)
            is_marrow &= mean > config.air_hu
            is_marrow[0] = False
            filled[is_marrow[holes]] = True
    # What closing added lies between dense voxels and marrow, or in notches of the surface.
    near: NDArray[np.bool_] = ndimage.binary_dilation(found)
    return found | (closed & near & (image > config.bone_hu / 2))


def _closed(mask: NDArray[np.bool_], spacing: Spacing, reach_mm: float) -> NDArray[np.bool_]:
    edt: Any = import_module("edt")

    def distance(inside: NDArray[np.bool_]) -> NDArray[np.float32]:
        return edt.edt(np.ascontiguousarray(inside), anisotropy=spacing, parallel=1)

    grown: NDArray[np.bool_] = distance(~mask) <= reach_mm
    return (distance(grown) > reach_mm) | mask
