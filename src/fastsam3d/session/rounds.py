"""One round: from the state before a prompt to the state after it.

This is where the predictor, the scale policy and the cache meet. A round sees the volume and the
prompts, never a truth. It is deterministic: the state after some prompts is that of playing them
one by one from the start. Volume coordinates are voxels as stored.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from fastsam3d.preprocess.roi import (
    Roi,
    mask_to_logits,
    paste_logits,
    resample_logits,
    roi_region,
    roi_to_voxel,
    voxel_to_roi,
)
from fastsam3d.prompts import Box, MaskPrompt, Point, PromptSet
from fastsam3d.segmenter import EMPTY_REGION, Prediction
from fastsam3d.session import scale
from fastsam3d.session.answers import Answer, Look, repeated
from fastsam3d.session.extent import MaskExtent, clicked_parts, measure_mask
from fastsam3d.session.history import BUDGET_WARNING, NO_HINT, RoundHint, RoundState
from fastsam3d.session.looks import RoiEncoder, looked_at, mean_of_looks, prompts_in_roi
from fastsam3d.session.middle import central_voxel, middle_voxel
from fastsam3d.session.mosaic import Mosaic
from fastsam3d.session.tissues import tissue_middles
from fastsam3d.volume import Region

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from fastsam3d.session.cache import EmbeddingCache
    from fastsam3d.session.predictor import DecodedMask, EncodedRoi, Predictor, RoiPrompts
    from fastsam3d.session.scale import ScalePolicy
    from fastsam3d.volume import Volume

EMPTY_WARNING = (
    "The model found nothing at the prompts; add a positive point inside the object or a box."
)
BLANK_WARNING = "The volume is constant around the prompts, so nothing can be found there."
NEGATIVE_WARNING = "A negative point selects nothing by itself; add a positive point or a box."
EMPTY_MASK_WARNING = "The mask prompt marks no voxel and was ignored."


@dataclass
class Round:
    """The work of one round; used once.

    Attributes:
        predictor: Runs the model.
        policy: How to choose the ROI.
        cache: Embeddings at hand.
        volume: What is segmented.
        volume_id: Its key in the cache.
        given: All points, boxes and masks so far, the new one last.
        hint: What is known beside them.
    """

    predictor: Predictor
    policy: ScalePolicy
    cache: EmbeddingCache
    volume: Volume
    volume_id: int
    given: PromptSet
    hint: RoundHint = NO_HINT
    _warnings: list[str] = field(default_factory=list[str])
    _work_ms: float = field(default=0.0, init=False)
    _looked_at: set[Roi] = field(default_factory=set["Roi"], init=False)

    def __post_init__(self) -> None:
        """Bring the prompts into the frame of the volume."""
        self._encoder = RoiEncoder(self.predictor, self.cache, self.volume, self.volume_id)
        self._prompts = self.given.to_voxel(self.volume.geometry)

    def play(self, before: RoundState | None) -> RoundState:
        """Return the state after the newest prompt.

        Args:
            before: The state after all other prompts; None if there are none.

        Raises:
            CheckpointError: The model returned logits that are not finite.
        """
        started = time.perf_counter()
        self._looked_at = looked_at(before, self.volume.geometry)
        answer = self._answer(before)
        answer.mask.setflags(write=False)
        roi = EMPTY_REGION if answer.roi is None else roi_region(self.volume.geometry, answer.roi)
        if answer.mosaic is not None:
            roi = answer.mosaic.region(self.volume.geometry)
        earlier = EMPTY_REGION if before is None else before.prediction.region
        elapsed = time.perf_counter() - started
        prediction = Prediction(
            volume=self.volume,
            region=answer.region,
            region_mask=answer.mask,
            changed=earlier.union(answer.region),
            roi=roi,
            spacing_mm=0.0 if answer.roi is None else answer.roi.spacing_mm,
            predicted_quality=answer.quality,
            encode_ms=self._encoder.seconds * 1e3,
            click_ms=(elapsed - self._encoder.seconds) * 1e3,
            warnings=tuple(self._warnings),
        )
        return RoundState(
            prompts=self.given,
            prediction=prediction,
            roi=answer.roi,
            prompt_logits=answer.logits,
            mosaic=answer.mosaic,
            work_ms=self._work_ms,
        )

    def answer_as(self, before: RoundState | None, roi: Roi, decoded: DecodedMask) -> Answer:
        """Return what the round would answer had the model seen this at the newest prompt.

        Args:
            before: As `play`.
            roi: Where the model looked.
            decoded: What it is to have seen there.

        Raises:
            CheckpointError: The model returned logits that are not finite.
        """
        self._looked_at = looked_at(before, self.volume.geometry) | {roi}
        look = self._judged(roi, decoded, prompts_in_roi(self._prompts, self.volume.geometry, roi))
        known = None if before is None else before.mosaic
        origin = None if known is None else known.origin_of(roi, self.volume.geometry)
        if known is None or origin is None:
            return self._finish(look)
        mosaic = known.with_tile(origin, look.decoded.logits, look.decoded.quality)
        return self._finish(look, mosaic.with_clicked_parts(self._clicks_in(mosaic)))

    @property
    def _size(self) -> int:
        return self.predictor.image_size

    def _positives(self) -> NDArray[np.float64]:
        """Return the positive clicks, voxels of the volume as stored, shape (N, 3)."""
        chosen = [point.position for point in self._prompts.points if point.positive]
        return np.array(chosen, dtype=np.float64).reshape(-1, 3)

    def _box_roi(self, box: Box) -> Roi:
        return scale.roi_of_region(self.policy, self.volume.geometry, box.region, size=self._size)

    def _answer(self, before: RoundState | None) -> Answer:
        newest = self._prompts.prompts[-1]
        if isinstance(newest, MaskPrompt):
            return self._answer_mask(newest, before)
        if before is None or before.roi is None:
            look = self._first_look()
            return Answer() if look is None else self._finish(look)
        known = self._known_mosaic(before, before.roi, newest)
        if known is not None and isinstance(newest, Point):
            return self._look_in_mosaic(known, newest)
        return self._finish(self._next_look(before, before.roi, newest))

    def _first_look(self) -> Look | None:
        """Look for an object that no prompt has placed yet."""
        positives = self._positives()
        if self._prompts.boxes:
            rois: Sequence[Roi] = [self._box_roi(self._prompts.boxes[-1])]
        elif len(positives):
            rois = scale.candidate_rois(
                scale.policy_for_extent(self.policy, self.hint.extent_mm, size=self._size),
                self.volume.geometry,
                positives[-1],
                size=self._size,
            )
        else:
            self._warnings.append(NEGATIVE_WARNING)
            return None
        encoded = self._encode(rois)
        seen = [(roi, one) for roi, one in zip(rois, encoded, strict=True) if not one.is_blank]
        if not seen:
            self._warnings.append(BLANK_WARNING)
            return None
        many = self.policy.first_click_candidates and not self._prompts.boxes
        looks = [self._look(roi, one, None, multimask=many) for roi, one in seen]
        best = max(looks, key=lambda look: look.score)
        if self._prompts.boxes and not len(positives):
            best = self._recentred(best, self._prompts.boxes[-1])
        elif self.hint.fit is not None and self._affords(best.roi):
            best = self._better_fit(best, self._prompts, self._fit_to_drawing, self.hint.fit_margin)
        return self._grow(self._refine_often(best, self.policy.max_refinements))

    def _recentred(self, look: Look, box: Box) -> Look:
        """Look again from the middle of what a box gave, with a point there.

        Models are trained to be asked at the ROI's centre, on the object. The middle of the box
        around a crescent is beside it, and what is there may be another tissue, for which CT is
        then shown: an answer that leaves much of the box is asked for again in each of its tissues.
        """
        geometry = self.volume.geometry
        region, mask = paste_logits(look.decoded.logits, geometry, look.roi)
        voxels = np.argwhere(mask) + region.start
        is_inside = np.all((voxels >= box.region.start) & (voxels < box.region.stop), axis=1)
        best = look
        if is_inside.any():
            middle = middle_voxel(voxels[is_inside], geometry)
            best = self._look_in_box(box, middle) or look
        if self.policy.box_tissues and self._fit_to_box(best) < self.policy.box_fit:
            middles = tissue_middles(self.volume, box.region, self.policy.box_tissues)
            looks = [self._look_in_box(box, middle) for middle in middles]
            best = max([best, *filter(None, looks)], key=self._worth_in_box)
        return best

    def _look_in_box(self, box: Box, middle: NDArray[np.int64]) -> Look | None:
        """Look at a box's object as if a voxel in it was clicked; None if there is no way."""
        geometry = self.volume.geometry
        spacing = scale.spacing_of_box(self.policy, geometry, box.region, size=self._size)
        roi = Roi.around(middle, geometry, spacing, self._size)
        if not self._affords(roi):
            return None
        prompts = PromptSet((Point.voxel(middle.tolist()), *self._prompts.prompts))
        (encoded,) = self._encode([roi])
        if encoded.is_blank:
            return None
        look = self._look(roi, encoded, None, prompts=prompts)
        if self.policy.box_margin < 1 and self._affords(roi):
            look = self._better_fit(look, prompts, self._fit_to_box, self.policy.box_margin)
        for _ in range(self.policy.box_repeats):
            if look.extent.is_empty or not self._affords(roi):
                break
            look = self._look(roi, encoded, look.decoded.prompt_logits, prompts=prompts)
        return look

    def _fit_to_box(self, look: Look) -> float:
        box = self._prompts.boxes[-1]
        return scale.box_agreement(box, self.volume.geometry, look.roi, look.extent)

    def _worth_in_box(self, look: Look) -> float:
        """Return how well a look answers a box: a mask may fill one and yet be noise."""
        return self._fit_to_box(look) + look.decoded.quality

    def _fit_to_drawing(self, look: Look) -> float:
        if self.hint.fit is None:
            return 0.0
        return self.hint.fit(*paste_logits(look.decoded.logits, self.volume.geometry, look.roi))

    def _better_fit(
        self, look: Look, prompts: PromptSet, fit: Callable[[Look], float], margin: float
    ) -> Look:
        """Return another of the model's candidates if it fits what was drawn much better.

        Of a ring's box the model may have taken the hole, of a lasso's organ a part.
        """
        seen = prompts_in_roi(prompts, self.volume.geometry, look.roi)
        self._work_ms += self.policy.click_ms
        found = self.predictor.decode_all(self._encode([look.roi])[0], seen)
        others = [self._judged(look.roi, one, seen) for one in found]
        fits = [fit(one) for one in others]
        best = max(range(len(others)), key=fits.__getitem__)
        return others[best] if fits[best] > fit(look) + margin else look

    def _next_look(self, before: RoundState, roi: Roi, newest: object) -> Look:
        """Look again with one more prompt, at the same place if everything fits in."""
        target = self._roi_with_all_prompts(roi, newest)
        mask = before.prompt_logits
        if mask is not None and target != roi:
            mask = resample_logits(mask, self.volume.geometry, roi, target)
        look = self._look(target, self._encode([target])[0], mask)
        return self._grow(self._refine_often(look, self.policy.max_later_refinements))

    def _roi_with_all_prompts(self, roi: Roi, newest: object) -> Roi:
        geometry = self.volume.geometry
        if isinstance(newest, Box):
            is_seen = _holds(roi_region(geometry, roi), newest.region)
            return roi if is_seen else self._box_roi(newest)
        points = voxel_to_roi(self._positives(), geometry, roi)
        if scale.is_in_roi(points, roi).all():
            return roi
        grown = scale.grown_roi(self.policy, geometry, roi, MaskExtent(), points)
        return roi if grown is None else grown

    def _refine_often(self, look: Look, most: int) -> Look:
        for _ in range(most):
            refined = self._refine(look)
            if refined is None:
                break
            look = refined
        return look

    def _refine(self, look: Look) -> Look | None:
        """Return a better look at another spacing, if there is one."""
        geometry = self.volume.geometry
        spacing = scale.refined_spacing(self.policy, geometry, look.roi, look.extent)
        if spacing is None:
            return None
        target = replace(look.roi, spacing_mm=spacing)
        if not self._affords(target):
            return None
        again = self._look_from(look, target)
        is_kept = scale.is_refinement_kept(
            self.policy,
            (look.score, look.roi.spacing_mm, look.extent),
            (again.score, spacing, again.extent),
        )
        return again if is_kept else None

    def _grow(self, look: Look) -> Look:
        """Make the ROI larger while it cuts the mask off."""
        for _ in range(self.policy.max_growths):
            if not look.extent.num_cut_faces:
                break
            points = voxel_to_roi(self._positives(), self.volume.geometry, look.roi)
            roi = scale.grown_roi(self.policy, self.volume.geometry, look.roi, look.extent, points)
            if roi is None or not self._affords(roi):
                break
            grown = self._look_from(look, roi)
            if grown.score < look.score - self.policy.score_tolerance:
                break
            look = grown
        return look

    # Objects longer than an ROI

    def _known_mosaic(self, before: RoundState, roi: Roi, newest: object) -> Mosaic | None:
        """Return what a point goes on from where one ROI is, or will be, not enough."""
        if before.mosaic is not None or not isinstance(newest, Point) or not newest.positive:
            return before.mosaic
        if not self.policy.max_tiles or before.prompt_logits is None:
            return None
        most = roi.spacing_mm * self.policy.growth**self.policy.max_growths
        if self._roi_with_all_prompts(roi, newest).spacing_mm <= most:
            return None
        known = Mosaic.of(roi, before.prompt_logits, before.prediction.predicted_quality)
        return known.with_clicked_parts(self._clicks_in(known))

    def _look_in_mosaic(self, known: Mosaic, newest: Point) -> Answer:
        """Look again at the tile in whose middle the newest point is, or at a tile around it."""
        at = voxel_to_roi(
            newest.to_voxel(self.volume.geometry).position, self.volume.geometry, known.anchor
        )
        number, distance = known.nearest(at)
        origin = known.origins[number]
        if distance > 1 and newest.positive:
            origin = _origin_around(np.rint(at).astype(int), self._size)
            if not known.fits(origin):
                origin = known.origins[number]
        look = self._look_at_tile(known, origin, None)
        mosaic = known.with_tile(origin, look.decoded.logits, look.decoded.quality)
        return self._finish(look, mosaic.with_clicked_parts(self._clicks_in(mosaic)))

    def _look_at_tile(
        self, known: Mosaic, origin: tuple[int, int, int], seed: tuple[int, int, int] | None
    ) -> Look:
        """Decode one tile, given the mask so far and a point of it where the user gave none."""
        geometry = self.volume.geometry
        roi = known.roi(origin, geometry)
        mask = known.cut(origin, self.predictor.logits_size)
        prompts = self._prompts
        if seed is None and not _has_positive(prompts_in_roi(prompts, geometry, roi)):
            middle = tuple(first + self._size // 2 for first in origin)
            is_known = mask[(mask.shape[0] // 2,) * 3] > 0
            seed = (middle[0], middle[1], middle[2]) if bool(is_known) else None
        if seed is not None:
            voxel = roi_to_voxel(np.array(seed, float), geometry, known.anchor)
            prompts = PromptSet((Point.voxel(voxel.tolist()), *prompts.prompts))
        return self._look(roi, self._encode([roi])[0], mask, prompts=prompts)

    def _finish(self, look: Look, mosaic: Mosaic | None = None) -> Answer:
        """Add tiles while the mask is cut off, and paste what came out."""
        if mosaic is None:
            mosaic = Mosaic.of(look.roi, look.decoded.logits, look.decoded.quality)
        geometry, contact = self.volume.geometry, self.policy.tile_contact
        seed = mosaic.next_seed(geometry, contact)
        for _ in range(self.policy.max_tiles):
            if seed is None:
                break
            origin = _origin_around(np.array(seed), self._size)
            roi = mosaic.roi(origin, geometry)
            if not mosaic.fits(origin) or not self._affords(roi):
                break
            found = self._look_at_tile(mosaic, origin, seed)
            mosaic = mosaic.with_tile(origin, found.decoded.logits, found.decoded.quality)
            mosaic = mosaic.with_clicked_parts(self._clicks_in(mosaic))
            seed = mosaic.next_seed(geometry, contact)
        if seed is not None:
            self._warnings.append(
                f"The mask runs into the border of the {look.roi.side_mm:.0f} mm cube that the "
                "model saw and may be cut off there; add a point near the missing part."
            )
        return self._paste(look, mosaic)

    def _clicks_in(self, mosaic: Mosaic) -> NDArray[np.float64]:
        """Return the positive clicks that some tile holds, lattice coordinates, (N, 3)."""
        points = voxel_to_roi(self._positives(), self.volume.geometry, mosaic.anchor)
        is_inside = [mosaic.nearest(point)[1] <= 1 for point in points]
        return points[np.array(is_inside, np.bool_)]

    # Work

    def _encode(self, rois: Sequence[Roi]) -> list[EncodedRoi]:
        self._work_ms += self.policy.encode_ms * len(set(rois) - self._looked_at)
        self._looked_at.update(rois)
        return self._encoder.encode(rois)

    def _affords(self, roi: Roi) -> bool:
        """Whether the budget has room for another look; says so if not."""
        price = self.policy.click_ms
        price += 0.0 if roi in self._looked_at else self.policy.encode_ms
        if not self.policy.budget_ms or (
            self.hint.spent_ms + self._work_ms + price <= self.policy.budget_ms
        ):
            return True
        warning = BUDGET_WARNING.format(self.policy.budget_ms)
        if warning not in self._warnings:
            self._warnings.append(warning)
        return False

    def _look_from(self, look: Look, roi: Roi) -> Look:
        """Look at another ROI, taking the mask along."""
        mask = look.decoded.prompt_logits
        carried = resample_logits(mask, self.volume.geometry, look.roi, roi)
        return self._look(roi, self._encode([roi])[0], carried)

    def _look(
        self,
        roi: Roi,
        encoded: EncodedRoi,
        mask: Tensor | None,
        *,
        multimask: bool = False,
        prompts: PromptSet | None = None,
    ) -> Look:
        self._work_ms += self.policy.click_ms
        given = self._prompts if prompts is None else prompts
        seen = prompts_in_roi(given, self.volume.geometry, roi)
        decoded = self.predictor.decode(encoded, seen, mask_logits_SSS=mask, multimask=multimask)
        if self.policy.look_factors:
            decoded = self._mean_look(roi, decoded, mask, given, multimask=multimask)
        return self._judged(roi, decoded, seen)

    def _mean_look(
        self, roi: Roi, own: DecodedMask, mask: Tensor | None, given: PromptSet, *, multimask: bool
    ) -> DecodedMask:
        """Return the mean of a look and of those at the policy's other spacings."""
        geometry, factors = self.volume.geometry, self.policy.look_factors
        rois = [replace(roi, spacing_mm=roi.spacing_mm * factor) for factor in factors]
        self._work_ms += self.policy.click_ms * len(rois)
        seen: list[tuple[Roi, DecodedMask]] = []
        for other, encoded in zip(rois, self._encode(rois), strict=True):
            carried = None if mask is None else resample_logits(mask, geometry, roi, other)
            prompts = prompts_in_roi(given, geometry, other)
            found = self.predictor.decode(
                encoded, prompts, mask_logits_SSS=carried, multimask=multimask
            )
            seen.append((other, found))
        return mean_of_looks(roi, own, seen, geometry)

    def _judged(self, roi: Roi, decoded: DecodedMask, seen: RoiPrompts) -> Look:
        clicks = seen.points[seen.is_positive]
        decoded = replace(decoded, logits=clicked_parts(decoded.logits, clicks))
        extent = measure_mask(self.policy, self.volume.geometry, roi, decoded.logits, clicks)
        return Look(roi, decoded, extent, scale.score(self.policy, decoded.quality, extent))

    def _answer_mask(self, prompt: MaskPrompt, before: RoundState | None) -> Answer:
        """Go on from a mask prompt; by itself, or chosen, it is the answer, else a start."""
        roi = None if before is None else before.roi
        if prompt.is_empty:
            self._warnings.append(EMPTY_MASK_WARNING)
            return repeated(before)
        geometry = self.volume.geometry
        region = prompt.region
        if roi is None or not _holds(roi_region(geometry, roi), region):
            centre = central_voxel(prompt.part, region)
            roi = scale.roi_of_region(self.policy, geometry, region, size=self._size, centre=centre)
        logits = mask_to_logits(prompt.array, geometry, roi, size=self.predictor.logits_size)
        logits = logits.to(self.predictor.device)
        is_start = bool(len(self._positives()) or self._prompts.boxes) and not prompt.is_answer
        if is_start:
            return self._finish(self._grow(self._look(roi, self._encode([roi])[0], logits)))
        mask = prompt.part.astype(np.uint8)
        return Answer(region=region, mask=mask, quality=1.0, roi=roi, logits=logits)

    def _paste(self, look: Look, mosaic: Mosaic) -> Answer:
        region, mask = paste_logits(
            mosaic.logits, self.volume.geometry, mosaic.anchor, start=mosaic.start
        )
        is_empty = not mask.any()
        if is_empty:
            self._warnings.append(EMPTY_WARNING)
        return Answer(
            region=EMPTY_REGION if is_empty else region,
            mask=mask[:0, :0, :0] if is_empty else mask,
            quality=0.0 if is_empty else mosaic.quality,
            roi=look.roi,
            logits=look.decoded.prompt_logits,
            mosaic=mosaic if len(mosaic.origins) > 1 else None,
        )


def _origin_around(voxel: NDArray[np.int64], size: int) -> tuple[int, int, int]:
    i, j, k = (int(value) - size // 2 for value in voxel)
    return i, j, k


def _has_positive(prompts: RoiPrompts) -> bool:
    return bool(prompts.is_positive.any()) or prompts.box is not None


def _holds(outer: Region, inner: Region) -> bool:
    return outer.union(inner) == outer
