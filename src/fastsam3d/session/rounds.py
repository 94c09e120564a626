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
    voxel_to_roi,
)
from fastsam3d.prompts import Box, MaskPrompt, PromptSet
from fastsam3d.segmenter import EMPTY_REGION, Prediction
from fastsam3d.session import scale
from fastsam3d.session.history import RoundState
from fastsam3d.session.looks import RoiEncoder, prompts_in_roi
from fastsam3d.volume import Region

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from fastsam3d.session.cache import EmbeddingCache
    from fastsam3d.session.predictor import DecodedMask, EncodedRoi, Predictor
    from fastsam3d.session.scale import MaskExtent, ScalePolicy
    from fastsam3d.volume import Volume

EMPTY_WARNING = (
    "The model found nothing at the prompts; add a positive point inside the object or a box."
)
BLANK_WARNING = "The volume is constant around the prompts, so nothing can be found there."
NEGATIVE_WARNING = "A negative point selects nothing by itself; add a positive point or a box."
EMPTY_MASK_WARNING = "The mask prompt marks no voxel and was ignored."


@dataclass(frozen=True, eq=False)
class Look:
    """One decoded ROI.

    Attributes:
        roi: Where the model looked.
        decoded: What it saw.
        extent: How that lies in the ROI.
        score: How good it is, as `scale.score` says.
    """

    roi: Roi
    decoded: DecodedMask
    extent: MaskExtent
    score: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Answer:
    """What a round found, before it is dressed up as a state.

    Attributes:
        region: Box of the volume with all foreground.
        mask: The mask in it.
        quality: Predicted quality.
        roi: What the model saw.
        logits: What the next round is fed.
    """

    region: Region = EMPTY_REGION
    mask: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 0, 0), np.uint8))
    quality: float = 0.0
    roi: Roi | None = None
    logits: Tensor | None = None


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
    """

    predictor: Predictor
    policy: ScalePolicy
    cache: EmbeddingCache
    volume: Volume
    volume_id: int
    given: PromptSet
    _warnings: list[str] = field(default_factory=list[str])

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
        answer = self._answer(before)
        answer.mask.setflags(write=False)
        roi = EMPTY_REGION if answer.roi is None else roi_region(self.volume.geometry, answer.roi)
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
        )

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
        else:
            look = self._next_look(before, before.roi, newest)
        return Answer() if look is None else self._paste(look)

    def _first_look(self) -> Look | None:
        """Look for an object that no prompt has placed yet."""
        positives = self._positives()
        if self._prompts.boxes:
            rois: Sequence[Roi] = [self._box_roi(self._prompts.boxes[-1])]
        elif len(positives):
            rois = scale.candidate_rois(
                self.policy, self.volume.geometry, positives[-1], size=self._size
            )
        else:
            self._warnings.append(NEGATIVE_WARNING)
            return None
        encoded = self._encoder.encode(rois)
        seen = [(roi, one) for roi, one in zip(rois, encoded, strict=True) if not one.is_blank]
        if not seen:
            self._warnings.append(BLANK_WARNING)
            return None
        many = self.policy.first_click_candidates and not self._prompts.boxes
        looks = [self._look(roi, one, None, multimask=many) for roi, one in seen]
        best = max(looks, key=lambda look: look.score)
        return self._grow(self._refine_often(best, self.policy.max_refinements))

    def _next_look(self, before: RoundState, roi: Roi, newest: object) -> Look:
        """Look again with one more prompt, at the same place if everything fits in."""
        target = self._roi_with_all_prompts(roi, newest)
        mask = before.prompt_logits
        if mask is not None and target != roi:
            mask = resample_logits(mask, self.volume.geometry, roi, target)
        look = self._look(target, self._encoder.encode([target])[0], mask)
        return self._grow(self._refine_often(look, self.policy.max_later_refinements))

    def _roi_with_all_prompts(self, roi: Roi, newest: object) -> Roi:
        geometry = self.volume.geometry
        if isinstance(newest, Box):
            is_seen = _holds(roi_region(geometry, roi), newest.region)
            return roi if is_seen else self._box_roi(newest)
        points = voxel_to_roi(self._positives(), geometry, roi)
        if scale.is_in_roi(points, roi).all():
            return roi
        grown = scale.grown_roi(self.policy, geometry, roi, scale.MaskExtent(), points)
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
        again = self._look_from(look, Roi(look.roi.centre_voxel, spacing, look.roi.size))
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
            if roi is None:
                break
            grown = self._look_from(look, roi)
            if grown.score < look.score - self.policy.score_tolerance:
                break
            look = grown
        if look.extent.num_cut_faces:
            self._warnings.append(
                f"The mask runs into the border of the {look.roi.side_mm:.0f} mm cube that the "
                "model saw and may be cut off there; add a point near the missing part."
            )
        return look

    def _look_from(self, look: Look, roi: Roi) -> Look:
        """Look at another ROI, taking the mask along."""
        mask = look.decoded.prompt_logits
        carried = resample_logits(mask, self.volume.geometry, look.roi, roi)
        return self._look(roi, self._encoder.encode([roi])[0], carried)

    def _look(
        self, roi: Roi, encoded: EncodedRoi, mask: Tensor | None, *, multimask: bool = False
    ) -> Look:
        prompts = prompts_in_roi(self._prompts, self.volume.geometry, roi)
        decoded = self.predictor.decode(encoded, prompts, mask_logits_SSS=mask, multimask=multimask)
        clicks = prompts.points[prompts.is_positive]
        decoded = replace(decoded, logits=scale.clicked_parts(decoded.logits, clicks))
        extent = scale.measure_mask(self.policy, self.volume.geometry, roi, decoded.logits, clicks)
        return Look(roi, decoded, extent, scale.score(self.policy, decoded.quality, extent))

    def _answer_mask(self, prompt: MaskPrompt, before: RoundState | None) -> Answer:
        """Go on from a mask prompt; by itself, or chosen, it is the answer, else a start."""
        roi = None if before is None else before.roi
        if prompt.is_empty:
            self._warnings.append(EMPTY_MASK_WARNING)
            return _repeat(before)
        geometry = self.volume.geometry
        region = prompt.region
        if roi is None or not _holds(roi_region(geometry, roi), region):
            centre = _middle_voxel(prompt.part, region)
            roi = scale.roi_of_region(self.policy, geometry, region, size=self._size, centre=centre)
        logits = mask_to_logits(prompt.array, geometry, roi, size=self.predictor.logits_size)
        logits = logits.to(self.predictor.device)
        is_start = bool(len(self._positives()) or self._prompts.boxes) and not prompt.is_answer
        if is_start:
            return self._paste(self._grow(self._look(roi, self._encoder.encode([roi])[0], logits)))
        mask = prompt.part.astype(np.uint8)
        return Answer(region=region, mask=mask, quality=1.0, roi=roi, logits=logits)

    def _paste(self, look: Look) -> Answer:
        region, mask = paste_logits(look.decoded.logits, self.volume.geometry, look.roi)
        is_empty = not mask.any()
        if is_empty:
            self._warnings.append(EMPTY_WARNING)
        return Answer(
            region=EMPTY_REGION if is_empty else region,
            mask=mask[:0, :0, :0] if is_empty else mask,
            quality=0.0 if is_empty else look.decoded.quality,
            roi=look.roi,
            logits=look.decoded.prompt_logits,
        )


def _repeat(before: RoundState | None) -> Answer:
    if before is None:
        return Answer()
    return Answer(
        region=before.prediction.region,
        mask=before.prediction.region_mask,
        quality=before.prediction.predicted_quality,
        roi=before.roi,
        logits=before.prompt_logits,
    )


def _holds(outer: Region, inner: Region) -> bool:
    return outer.union(inner) == outer


def _middle_voxel(part: NDArray[np.bool_], region: Region) -> NDArray[np.float64]:
    """Return a voxel of the mask near the middle of its box: models expect one at the centre."""
    middle = (np.array(part.shape) - 1) / 2
    voxels = np.argwhere(part)
    nearest = voxels[np.square(voxels - middle).sum(1).argmin()]
    return np.asarray(nearest + region.start, np.float64)
