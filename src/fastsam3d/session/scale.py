"""Choosing where and how finely the model looks: pure functions of volume grid and prompts.

A small object in a coarse ROI is a few voxels wide, a large one in a fine ROI is cut off. So a
first click tries a few spacings at once, keeps the one that `score` prefers, looks again where
the object is much smaller or larger than the ROI (`refined_spacing`), and grows the ROI while the
mask runs into a face beyond which the scan goes on (`grown_roi`).

The ROI stays centred on a positive click (or on the box): that is where models are trained to
look. What is guaranteed: a mask that is returned without a warning does not end at a face of the
ROI, unless by less than `ScalePolicy.face_contact` of that face.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, cast

import numpy as np

from fastsam3d.errors import ConfigError
from fastsam3d.preprocess.roi import Roi, canonical_spacing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastsam3d.prompts import Box
    from fastsam3d.session.extent import MaskExtent
    from fastsam3d.volume import Geometry, Region

    Points = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ScalePolicy:
    """Numbers behind the choice of the ROI.

    Attributes:
        spacings_mm: Spacings that a first click tries.
        finest_voxel: No ROI is finer than this part of the volume's finest voxel side.
        same_spacing: Spacings closer than this factor count as one.
        empty_penalty: Taken off the predicted quality of an empty mask.
        missed_penalty: Taken off where the mask misses every positive click.
        face_penalty: Taken off where the mask is cut off by a face of the ROI.
        tiny_penalty: Taken off where the mask's extent is below `tiny_voxels`.
        tiny_voxels: Extent in ROI voxels below which an object is too small for the ROI.
        face_contact: Part of an ROI face that the mask must cover to count as cut off, so that the
            ROI grows; where less is covered, the object is long and ROIs are added.
        trim: Part of the mask's voxels that its extent leaves out at each end of an axis.
        target_extent: Extent of the object over the ROI's side that refining aims at.
        smallest_extent: Refine where the extent is below this part of the side.
        largest_extent: Refine where the extent is above this part of the side.
        drawn_extent: As `target_extent` for a first drawing on a slice, where the third side of the
            object is not known.
        box_extent: As `target_extent` for the second look at a first box, whose sides are known;
            0 takes the spacing that a click would be answered at.
        box_repeats: How often the answer to a first box is given back to the model.
        box_margin: Another of the model's candidates answers a first box where its sides agree with
            the box better, by more than this IoU; 1 asks for no candidates.
        box_tissues: Into how many tissues, by intensity, a first box is divided where its answer
            does not fit it; each is looked at from its middle, and what fits best, by predicted
            quality too, is the answer. 0 never looks again.
        box_fit: IoU of the box and the box around its answer from which on that one fits.
        max_refinements: How often a first click may be refined.
        max_later_refinements: How often each further prompt may be refined, now that the object
            is better known.
        consistent_extent: A refined mask whose extent in mm differs by less than this factor
            may score a little worse.
        score_tolerance: How much worse.
        max_growths: How often a prompt may make the ROI larger.
        growth: A mask that is cut off makes the ROI larger by at least this factor.
        growth_extent: Largest part of the side that the known object takes in a grown ROI.
        max_tiles: How many overlapping ROIs of the same spacing a prompt may add where the mask
            runs into a face; see `mosaic`.
        tile_contact: Part of a face that the mask must cover there for a further ROI.
        budget_ms: Estimated work that a prompt may take; 0 for no bound. See `budget`.
        encode_ms: Price of an encode in that estimate.
        click_ms: Price of a decode, and of what goes with it.
        look_factors: Every look is also taken with voxels larger by these factors, around the same
            place, and the mean of what is seen counts: for each an encode and a decode more.
        first_click_candidates: Ask the model for several masks at a first click and take that of
            the best predicted quality.

    Raises:
        ConfigError: A value is out of range.
    """

    spacings_mm: tuple[float, ...] = (0.75, 1.5, 3.0)
    finest_voxel: float = 0.5
    same_spacing: float = 1.15
    empty_penalty: float = 1.0
    missed_penalty: float = 0.5
    face_penalty: float = 0.25
    tiny_penalty: float = 0.15
    tiny_voxels: float = 12.0
    face_contact: float = 0.02
    trim: float = 0.005
    target_extent: float = 0.6
    smallest_extent: float = 0.3
    largest_extent: float = 0.8
    drawn_extent: float = 0.4
    box_extent: float = 0.0
    box_repeats: int = 0
    box_margin: float = 0.2
    box_tissues: int = 3
    box_fit: float = 0.7
    max_refinements: int = 0
    max_later_refinements: int = 0
    consistent_extent: float = 1.6
    score_tolerance: float = 0.1
    max_growths: int = 2
    growth: float = 1.3
    growth_extent: float = 0.75
    max_tiles: int = 6
    tile_contact: float = 0.002
    budget_ms: float = 0.0
    encode_ms: float = 600.0
    click_ms: float = 200.0
    look_factors: tuple[float, ...] = ()
    first_click_candidates: bool = False

    def __post_init__(self) -> None:
        """Check what would make the choice endless or meaningless."""
        object.__setattr__(self, "spacings_mm", tuple(self.spacings_mm))
        object.__setattr__(self, "look_factors", tuple(self.look_factors))
        if not self.spacings_mm or min(self.spacings_mm) <= 0:
            message = f"Spacings must be positive millimetres, got {self.spacings_mm}."
            raise ConfigError(message)
        if not 0 < self.smallest_extent < self.target_extent < self.largest_extent <= 1:
            message = (
                "Extents must rise from 0 to 1 as smallest, target, largest, got "
                f"{self.smallest_extent}, {self.target_extent}, {self.largest_extent}."
            )
            raise ConfigError(message)
        if self.box_tissues and self.box_tissues < 2:
            message = f"box_tissues must be 0 or at least 2, got {self.box_tissues}."
            raise ConfigError(message)
        if min(self.growth, self.same_spacing, self.consistent_extent) <= 1:
            message = f"Factors growth, same_spacing, consistent_extent must exceed 1: {self}."
            raise ConfigError(message)
        if any(factor <= 0 or factor == 1 for factor in self.look_factors):
            message = f"Factors of further looks must be positive and not 1: {self.look_factors}."
            raise ConfigError(message)
        lists = {"spacings_mm", "look_factors"}
        numbers = [getattr(self, item.name) for item in fields(self) if item.name not in lists]
        if min(cast("list[float]", numbers)) < 0:
            message = f"Scale policy must not hold negative numbers, got {self}."
            raise ConfigError(message)


def finest_spacing(policy: ScalePolicy, geometry: Geometry) -> float:
    """Return the finest spacing that makes sense for a volume, mm."""
    return policy.finest_voxel * min(geometry.spacing)


def covering_spacing(geometry: Geometry, centre: Points, size: int) -> float:
    """Return the spacing in mm at which an ROI around `centre` holds the whole volume.

    Args:
        geometry: Grid of the volume.
        centre: Voxel of the canonical volume, shape (3,).
        size: Side of the ROI in voxels.
    """
    shape = np.asarray(geometry.canonical_reorder().reordered_shape)
    reach = np.maximum(centre + 0.5, shape - 0.5 - centre) * canonical_spacing(geometry)
    # The upper half of an ROI is half a voxel shorter than the lower one.
    return float(reach.max()) / (size / 2 - 0.5)


def candidate_rois(
    policy: ScalePolicy, geometry: Geometry, voxel: Points, *, size: int
) -> tuple[Roi, ...]:
    """Return the ROIs that a first click tries, finest first.

    Args:
        policy: Spacings to try.
        geometry: Grid of the volume; spacings are kept between `finest_spacing` and
            `covering_spacing`.
        voxel: The click, voxel of the volume as stored, shape (3,).
        size: Side of the ROI in voxels.
    """
    widest = Roi.around(voxel, geometry, 1.0, size)
    finest = finest_spacing(policy, geometry)
    coarsest = max(finest, covering_spacing(geometry, np.asarray(widest.centre_voxel), size))
    chosen: list[float] = []
    for spacing in sorted(min(max(s, finest), coarsest) for s in policy.spacings_mm):
        if not chosen or spacing > chosen[-1] * policy.same_spacing:
            chosen.append(spacing)
    return tuple(replace(widest, spacing_mm=spacing) for spacing in chosen)


def policy_for_extent(policy: ScalePolicy, extent_mm: float | None, *, size: int) -> ScalePolicy:
    """Return the policy for an object of which somebody has drawn how large it is.

    Args:
        policy: Spacings, and which extents are fine as they are.
        extent_mm: Longest side of the drawing; None where there is none.
        size: Side of the ROI in voxels.

    Returns:
        The policy with one spacing if the object would be small or large at all of the policy's.
    """
    if not extent_mm:
        return policy
    shares = [extent_mm / (size * spacing) for spacing in policy.spacings_mm]
    if any(policy.smallest_extent <= share <= policy.largest_extent for share in shares):
        return policy
    return replace(policy, spacings_mm=(extent_mm / (policy.drawn_extent * size),))


def roi_of_region(
    policy: ScalePolicy,
    geometry: Geometry,
    region: Region,
    *,
    size: int,
    centre: Points | None = None,
) -> Roi:
    """Return the ROI in which a box of voxels has the extent aimed at.

    Args:
        policy: Extent aimed at, finest spacing.
        geometry: Grid of the volume.
        region: The box, voxels of the volume as stored.
        size: Side of the ROI in voxels.
        centre: Where to centre it, voxel of the volume as stored, shape (3,); the middle of the
            box by default.
    """
    low, high = np.asarray(region.start) - 0.5, np.asarray(region.stop) - 0.5
    middle = (low + high) / 2 if centre is None else centre
    sides_mm = 2 * np.maximum(high - middle, middle - low) * geometry.spacing
    spacing = float(sides_mm.max()) / (policy.target_extent * size)
    return Roi.around(middle, geometry, max(spacing, finest_spacing(policy, geometry)), size)


def spacing_of_box(policy: ScalePolicy, geometry: Geometry, region: Region, *, size: int) -> float:
    """Return the spacing in mm at which to look for the object in a box of voxels a second time.

    Args:
        policy: Extent aimed at, finest spacing.
        geometry: Grid of the volume.
        region: The box, voxels of the volume as stored.
        size: Side of the ROI in voxels.
    """
    extent_mm = float((np.array(region.shape) * geometry.spacing).max())
    if policy.box_extent:
        spacing = extent_mm / (policy.box_extent * size)
    else:
        spacing = policy_for_extent(policy, extent_mm, size=size).spacings_mm[0]
    return max(spacing, finest_spacing(policy, geometry))


def box_to_roi(box: Box, geometry: Geometry, roi: Roi) -> NDArray[np.float64]:
    """Return a voxel box as half-open i0 j0 k0 i1 j1 k1 in ROI voxels, cut to the ROI, (6,)."""
    region = geometry.canonical_reorder().apply_region(box.region)
    scale = np.asarray(canonical_spacing(geometry)) / roi.spacing_mm
    # A half-open corner n is the face before voxel n, at n - 0.5.
    corners = np.array([region.start, region.stop]) - 0.5
    faces = (corners - roi.centre_voxel) * scale + roi.size // 2 + 0.5
    return np.clip(faces, 0, roi.size).reshape(6)


def box_agreement(box: Box, geometry: Geometry, roi: Roi, extent: MaskExtent) -> float:
    """Return the IoU of a voxel box, as far as an ROI shows it, and the box around a mask."""
    start, stop = box_to_roi(box, geometry, roi).reshape(2, 3)
    # Faces of an extent count from voxel centres, corners of a box from the faces before voxels.
    low, high = np.array(extent.start) + 0.5, np.array(extent.stop) + 0.5
    shared = np.clip(np.minimum(stop, high) - np.maximum(start, low), 0, None).prod()
    either = (stop - start).prod() + (high - low).prod() - shared
    return float(shared / either) if either > 0 else 0.0


def score(policy: ScalePolicy, quality: float, extent: MaskExtent) -> float:
    """Return how good a mask is to look at: predicted quality less penalties."""
    if extent.is_empty:
        return quality - policy.empty_penalty
    penalty = 0.0
    if extent.num_cut_faces:
        penalty += policy.face_penalty
    if extent.largest < policy.tiny_voxels:
        penalty += policy.tiny_penalty
    if not extent.has_click:
        penalty += policy.missed_penalty
    return quality - penalty


def refined_spacing(
    policy: ScalePolicy, geometry: Geometry, roi: Roi, extent: MaskExtent
) -> float | None:
    """Return the spacing in mm at which the object would have the extent aimed at.

    Returns:
        None where the object is fine as it is, is cut off (its extent is then unknown) or the
        volume's own limits leave no noticeably better spacing.
    """
    share = extent.largest / roi.size
    if extent.is_empty or extent.num_cut_faces:
        return None
    if policy.smallest_extent <= share <= policy.largest_extent:
        return None
    finest = finest_spacing(policy, geometry)
    coarsest = max(finest, covering_spacing(geometry, np.asarray(roi.centre_voxel), roi.size))
    wanted = min(max(roi.spacing_mm * share / policy.target_extent, finest), coarsest)
    change = max(wanted / roi.spacing_mm, roi.spacing_mm / wanted)
    return wanted if change > policy.same_spacing else None


def is_refinement_kept(
    policy: ScalePolicy,
    before: tuple[float, float, MaskExtent],
    after: tuple[float, float, MaskExtent],
) -> bool:
    """Whether a second look at another spacing replaces the first.

    Args:
        policy: Tolerances.
        before: Score, spacing in mm and extent of the first look.
        after: The same of the second.
    """
    score_before, spacing_before, extent_before = before
    score_after, spacing_after, extent_after = after
    if extent_after.is_empty:
        return False
    if score_after >= score_before:
        return True
    ratio = (extent_after.largest * spacing_after) / (extent_before.largest * spacing_before)
    is_consistent = max(ratio, 1 / ratio) < policy.consistent_extent
    return is_consistent and score_after >= score_before - policy.score_tolerance


def grown_roi(
    policy: ScalePolicy, geometry: Geometry, roi: Roi, extent: MaskExtent, clicks: Points
) -> Roi | None:
    """Return a larger ROI that holds the object and all positive clicks.

    It stays centred where it is, or moves to a click from which less spacing is needed.

    Args:
        policy: Growth numbers.
        geometry: Grid of the volume.
        roi: The ROI that is too small.
        extent: The mask in it; its box is kept inside.
        clicks: Positive clicks, ROI voxels, shape (N, 3), inside or outside of the ROI.

    Returns:
        None where the ROI needs no growth or already holds the whole volume.
    """
    offset_mm = (clicks - roi.size // 2) * roi.spacing_mm
    known_mm = [offset_mm]
    if not extent.is_empty:
        faces = np.array([extent.start, extent.stop])
        known_mm.append((faces - roi.size // 2) * roi.spacing_mm)
    low, high = np.concatenate(known_mm).min(0), np.concatenate(known_mm).max(0)
    centres_mm = np.concatenate([np.zeros((1, 3)), offset_mm])
    reach_mm = np.maximum(high - centres_mm, centres_mm - low).max(1)
    # Moving costs context that the user has seen; it must save a tenth.
    reach_mm[1:] *= 1.1
    centre_mm = centres_mm[int(reach_mm.argmin())]
    reach = float(np.maximum(high - centre_mm, centre_mm - low).max())
    wanted = 2 * reach / (policy.growth_extent * roi.size)
    least = roi.spacing_mm * (policy.growth if extent.num_cut_faces else 1.0)
    centre = np.asarray(roi.centre_voxel) + centre_mm / canonical_spacing(geometry)
    limit = max(covering_spacing(geometry, centre, roi.size), finest_spacing(policy, geometry))
    i, j, k = centre.tolist()
    grown = replace(roi, centre_voxel=(i, j, k), spacing_mm=min(max(wanted, least), limit))
    return None if grown.spacing_mm <= roi.spacing_mm and not centre_mm.any() else grown


def is_in_roi(points: Points, roi: Roi) -> NDArray[np.bool_]:
    """Whether points in ROI voxels, (N, 3), lie within the faces of the ROI; shape (N,)."""
    is_inside = (points >= -0.5) & (points <= roi.size - 0.5)
    return np.logical_and.reduce(is_inside, axis=1)
