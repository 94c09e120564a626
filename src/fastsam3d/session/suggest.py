"""Suggest everything: masks of what the model finds by itself, for people to accept or not.

A lattice of clicks is asked, coarse to fine, as a user would ask one click each. An answer is kept
where the model trusts it (predicted quality) and where it does not hang on the threshold
(stability). A lattice hits few structures in their middle, where models answer best, so its clicks
pass at a lower bar; the best are then asked once more from their middles, and what does not reach
the full bar then is dropped. What several clicks found is kept once: non-maximum suppression on
whole masks.
What an ROI cuts off is kept only where a neighbouring ROI saw the rest and both agree on what both
see.
Everything is deterministic, and bounded in number and memory.

Source: the filters are those of Segment Anything's automatic mask generator (Kirillov et al.,
2023, section 5 and appendix B), carried over to 3-D.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from fastsam3d.errors import ConfigError
from fastsam3d.preprocess.roi import Roi, paste_logits, roi_region, voxel_to_roi
from fastsam3d.prompts import Point
from fastsam3d.prompts.simulate import first_click
from fastsam3d.session.extent import clicked_parts, measure_mask
from fastsam3d.session.object_mask import ObjectMask
from fastsam3d.session.packed_mask import PackedMask
from fastsam3d.session.postprocess import voxel_ml
from fastsam3d.session.predictor import RoiPrompts
from fastsam3d.session.scale import ScalePolicy
from fastsam3d.session.suggest_grid import plan_levels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from fastsam3d.session.predictor import DecodedMask, Predictor
    from fastsam3d.session.suggest_grid import Tile
    from fastsam3d.volume import Region, Volume

GPU_BATCH: Final = 16
"""Clicks that a GPU decodes at once; a CPU is faster one by one, around the object alone."""
_SPARE: Final = 4


@dataclass(frozen=True, kw_only=True)
class SuggestPolicy:
    """Numbers behind the suggestions.

    Attributes:
        spacings_mm: Spacings at which to look, coarse to fine; each is limited by the volume. At
            3.2 mm a first click on the CT of the development cases reaches little more than half
            the Dice of 1.4 mm (benchmarks/session_policies.json).
        max_points: Clicks to ask, all spacings together: most of the time that it takes.
        core: Part of an ROI's side within which its clicks lie; larger means fewer encodings and
            worse answers, since models are trained to be asked in the middle.
        min_intensity: Clicks darker than this part of the range between the 1st and the 99th
            percentile are on air or background and not asked.
        min_quality: Predicted quality below which an answer is dropped.
        min_stability: Stability below which an answer is dropped.
        stability_shift: Logits by which the threshold is moved down and up; the stability is the
            volume of the smaller mask over that of the larger.
        min_ml: Smallest volume.
        max_iou: Of two masks that overlap by more, the one of the lower score is dropped.
        min_agreement: Two ROIs saw parts of one object if the IoU in what both see reaches this.
        max_suggestions: How many to return at most.
        recentre: Ask for each of the best once more, in an ROI around its middle, and keep the
            better answer; one encoding each.
        first_bar: Share of `min_quality` and `min_stability` at which an answer is asked again.

    Raises:
        ConfigError: A value is out of range.
    """

    spacings_mm: tuple[float, ...] = (1.5,)
    max_points: int = 256
    core: float = 0.25
    min_intensity: float = 0.1
    min_quality: float = 0.3
    min_stability: float = 0.5
    stability_shift: float = 1.0
    min_ml: float = 0.05
    max_iou: float = 0.5
    min_agreement: float = 0.7
    max_suggestions: int = 50
    recentre: bool = True
    first_bar: float = 0.5

    def __post_init__(self) -> None:
        """Check what would be endless or meaningless."""
        shares = (self.core, self.min_intensity, self.min_quality, self.min_stability)
        shares += (self.max_iou, self.min_agreement, self.first_bar)
        if not all(0 <= value <= 1 for value in shares) or not self.core:
            message = f"Shares of a suggestion policy must be 0 to 1, got {self}."
            raise ConfigError(message)
        if not self.spacings_mm or min(*self.spacings_mm, self.min_ml) <= 0:
            message = f"Spacings and volumes of a suggestion policy must be positive, got {self}."
            raise ConfigError(message)
        if min(self.max_points, self.max_suggestions) < 1 or self.stability_shift < 0:
            message = f"Numbers of a suggestion policy must be positive, got {self}."
            raise ConfigError(message)


@dataclass(frozen=True, eq=False, kw_only=True)
class Suggestion:
    """A mask that the model found by itself.

    Attributes:
        mask: Its voxels.
        point: The click that found it, in voxels.
        quality: Predicted IoU.
        stability: How little it hangs on the threshold, 0 to 1.
        spacing_mm: At which it was found.
        num_points: How many clicks found it.
    """

    mask: ObjectMask
    point: Point
    quality: float
    stability: float
    spacing_mm: float
    num_points: int

    @property
    def score(self) -> float:
        """What suggestions are ranked by."""
        return self.quality * self.stability


def suggest_objects(
    predictor: Predictor,
    volume: Volume,
    policy: SuggestPolicy | None = None,
    *,
    known: Iterable[ObjectMask] = (),
    on_progress: Callable[[int, int], None] | None = None,
    is_cancelled: Callable[[], bool] | None = None,
) -> tuple[Suggestion, ...]:
    """Look for objects everywhere in a volume.

    Args:
        predictor: Runs the model.
        volume: Where to look.
        policy: How.
        known: Objects that are there already: not asked inside of, and not suggested again.
        on_progress: Told after each ROI how many clicks are done, and of how many.
        is_cancelled: Asked before each decoding; give a `threading.Event`'s `is_set`.

    Returns:
        Best score first; what was found so far if it was cancelled.

    Raises:
        CheckpointError: The model returned logits that are not finite.
    """
    search = _Search(
        predictor=predictor,
        volume=volume,
        policy=SuggestPolicy() if policy is None else policy,
        known=[PackedMask.of(mask) for mask in known if not mask.is_empty],
        is_cancelled=is_cancelled or (lambda: False),
    )
    levels = plan_levels(
        volume,
        spacings_mm=search.policy.spacings_mm,
        size=predictor.image_size,
        core=search.policy.core,
        max_points=search.policy.max_points,
        min_intensity=search.policy.min_intensity,
    )
    again = search.policy.max_suggestions if search.policy.recentre else 0
    total = sum(len(tile.voxels) for level in levels for tile in level) + again
    done = 0
    for level in levels:
        for tile in level:
            search.look(tile)
            done += len(tile.voxels)
            _tell(on_progress, done, total)
        search.end_level()
    for _ in search.look_again() if again else ():
        done += 1
        _tell(on_progress, done, total)
    _tell(on_progress, total, total)
    return search.suggestions()


def _tell(on_progress: Callable[[int, int], None] | None, done: int, total: int) -> None:
    if on_progress is not None:
        on_progress(done, total)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Found:
    """A mask on its way to be a suggestion; `seen` is what its ROI saw of the volume."""

    mask: PackedMask
    seen: Region
    voxel: tuple[int, int, int]
    quality: float
    stability: float
    spacing_mm: float
    is_cut: bool
    num_points: int = 1

    @property
    def score(self) -> float:
        return self.quality * self.stability


@dataclass(kw_only=True)
class _Search:
    """What was found so far: whole masks, and parts of this level that their ROIs cut off."""

    predictor: Predictor
    volume: Volume
    policy: SuggestPolicy
    known: list[PackedMask]
    is_cancelled: Callable[[], bool]
    whole: list[_Found] = field(default_factory=list["_Found"])
    parts: list[_Found] = field(default_factory=list["_Found"])
    settled: list[PackedMask] = field(default_factory=list["PackedMask"])

    def look(self, tile: Tile) -> None:
        """Ask the clicks of an ROI; nothing once it is cancelled."""
        # What is there, or what a coarser level found, is not asked again.
        taken = [*self.known, *self.settled]
        voxels = [v for v in _triples(tile.voxels) if not any(mask.holds(v) for mask in taken)]
        found = self._ask(tile.roi, voxels)
        self.whole = suppressed(
            [*self.whole, *(one for one in found if not one.is_cut)],
            self.policy.max_iou,
            self._limit,
        )
        self.parts += suppressed(
            (one for one in found if one.is_cut), self.policy.max_iou, self.policy.max_suggestions
        )

    def look_again(self) -> Iterator[None]:
        """Ask for the best from their middles, one at each step; the better answer is kept."""
        best = suppressed(self.whole, self.policy.max_iou, self.policy.max_suggestions)
        for n, one in enumerate(best):
            mask = one.mask.unpack()
            middle = first_click(mask.array, self.volume.geometry.spacing).position
            i, j, k = (int(value) for value in np.add(middle, mask.region.start))
            roi = Roi.around(
                (i, j, k), self.volume.geometry, one.spacing_mm, self.predictor.image_size
            )
            for other in self._ask(roi, [(i, j, k)]):
                if not other.is_cut and other.score > one.score:
                    best[n] = replace(other, num_points=one.num_points + 1)
            yield
        self.whole = best

    def _is_trusted(self, one: _Found) -> bool:
        is_sure = one.quality >= self.policy.min_quality
        return is_sure and one.stability >= self.policy.min_stability

    def _ask(self, roi: Roi, voxels: list[tuple[int, int, int]]) -> list[_Found]:
        """Return the answers to clicks in an ROI that can be trusted."""
        if not voxels or self.is_cancelled():
            return []
        (encoded,) = self.predictor.embed(self.volume, [roi])
        if encoded.is_blank:
            return []
        clicks = voxel_to_roi(voxels, self.volume.geometry, roi)
        batch = 1 if self.predictor.device.type == "cpu" else GPU_BATCH
        found: list[_Found] = []
        for start in range(0, len(voxels), batch):
            if self.is_cancelled():
                break
            part = slice(start, start + batch)
            prompts = [RoiPrompts(click[None], np.ones(1, np.bool_)) for click in clicks[part]]
            answers = self.predictor.decode_each(encoded, prompts)
            for voxel, click, answer in zip(voxels[part], clicks[part], answers, strict=True):
                one = self._judge(roi, voxel, click, answer)
                if one is not None:
                    found.append(one)
        return found

    def end_level(self) -> None:
        """Put parts together, and settle what was found."""
        merged = merged_parts(self.parts, self.policy.min_agreement)
        self.whole = suppressed([*self.whole, *merged], self.policy.max_iou, self._limit)
        # What is doubtful yet must not keep finer clicks away.
        self.settled = [one.mask for one in self.whole if self._is_trusted(one)]
        self.parts = []

    def suggestions(self) -> tuple[Suggestion, ...]:
        """Return the best of what was found."""
        trusted = filter(self._is_trusted, self.whole)
        best = suppressed(trusted, self.policy.max_iou, self.policy.max_suggestions)
        return tuple(
            Suggestion(
                mask=one.mask.unpack(),
                point=Point.voxel(one.voxel),
                quality=one.quality,
                stability=one.stability,
                spacing_mm=one.spacing_mm,
                num_points=one.num_points,
            )
            for one in best
        )

    @property
    def _limit(self) -> int:
        return _SPARE * self.policy.max_suggestions

    def _judge(
        self,
        roi: Roi,
        voxel: tuple[int, int, int],
        click: NDArray[np.float64],
        answer: DecodedMask,
    ) -> _Found | None:
        """Return the answer to a click, or None where it is hopeless or not new."""
        bar = self.policy.first_bar if self.policy.recentre else 1.0
        if answer.quality < bar * self.policy.min_quality:
            return None
        logits = clicked_parts(answer.logits, click[None])
        stability = stability_of(logits, self.policy.stability_shift)
        if stability < bar * self.policy.min_stability:
            return None
        geometry = self.volume.geometry
        extent = measure_mask(ScalePolicy(), geometry, roi, logits, click[None])
        if not extent.has_click:
            return None
        mask = PackedMask.of(ObjectMask.cropped(*paste_logits(logits, geometry, roi)))
        if mask.num_voxels * voxel_ml(geometry) < self.policy.min_ml or not mask.num_voxels:
            return None
        if any(mask.iou(known) > self.policy.max_iou for known in self.known):
            return None
        return _Found(
            mask=mask,
            seen=roi_region(geometry, roi),
            voxel=voxel,
            quality=min(answer.quality, 1.0),
            stability=stability,
            spacing_mm=roi.spacing_mm,
            is_cut=extent.num_cut_faces > 0,
        )


def stability_of(logits: Tensor, shift: float) -> float:
    """Return the volume above a raised threshold over that above a lowered one, 0 to 1."""
    larger = int(torch.count_nonzero(logits > -shift))
    return int(torch.count_nonzero(logits > shift)) / larger if larger else 0.0


def suppressed(found: Iterable[_Found], max_iou: float, limit: int) -> list[_Found]:
    """Return the best masks, none of which overlaps a better one by more than `max_iou`.

    Of equal scores the earlier one counts as better. Boxes are compared before voxels.
    """
    kept: list[_Found] = []
    counts: list[int] = []
    for one in sorted(found, key=lambda one: -one.score):
        mask = one.mask
        rival = next(
            (
                n
                for n, other in enumerate(kept)
                if mask.largest_iou(other.mask) > max_iou and mask.iou(other.mask) > max_iou
            ),
            None,
        )
        if rival is not None:
            counts[rival] += one.num_points
        elif len(kept) < limit:
            kept.append(one)
            counts.append(one.num_points)
    return [replace(one, num_points=count) for one, count in zip(kept, counts, strict=True)]


def merged_parts(parts: list[_Found], min_agreement: float) -> list[_Found]:
    """Return the unions of parts that different ROIs saw of one object; lone parts are dropped."""
    group = list(range(len(parts)))
    for a, b in itertools.combinations(range(len(parts)), 2):
        if group[a] != group[b] and _agree(parts[a], parts[b], min_agreement):
            group = [group[a] if g == group[b] else g for g in group]
    merged: list[_Found] = []
    for members in (
        [part for part, g in zip(parts, group, strict=True) if g == n] for n in sorted(set(group))
    ):
        if len(members) < 2:
            continue
        best = max(members, key=lambda part: part.score)
        mask = members[0].mask
        for part in members[1:]:
            mask = mask.union(part.mask)
        merged.append(
            replace(
                best,
                mask=mask,
                quality=min(part.quality for part in members),
                stability=min(part.stability for part in members),
                is_cut=False,
                num_points=sum(part.num_points for part in members),
            )
        )
    return merged


def _agree(a: _Found, b: _Found, min_agreement: float) -> bool:
    """Whether two masks of different ROIs are much the same where both ROIs looked."""
    both = a.seen.intersection(b.seen)
    if a.seen == b.seen or both.is_empty:
        return False
    shared = a.mask.count_shared(b.mask)
    if not shared:
        return False
    either = a.mask.count_within(both) + b.mask.count_within(both) - shared
    return shared >= min_agreement * either


def _triples(voxels: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    return [(i, j, k) for i, j, k in voxels.tolist()]
