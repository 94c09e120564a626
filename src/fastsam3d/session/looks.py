"""What it takes to look at an ROI: its embedding, and the prompts in its frame.

Shared by the rounds that answer prompts and by what is asked about an answer afterwards.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from fastsam3d.preprocess.roi import resample_logits, voxel_to_roi
from fastsam3d.prompts import MaskPrompt
from fastsam3d.session import scale
from fastsam3d.session.cache import EmbeddingKey
from fastsam3d.session.predictor import DecodedMask, RoiPrompts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from fastsam3d.preprocess.roi import Roi
    from fastsam3d.prompts import PromptSet
    from fastsam3d.session.cache import EmbeddingCache
    from fastsam3d.session.history import RoundState
    from fastsam3d.session.predictor import EncodedRoi, Predictor
    from fastsam3d.volume import Geometry, Volume

HALF = 0.5


@dataclass
class RoiEncoder:
    """Embeds ROIs of one volume and keeps them at hand.

    Attributes:
        predictor: Runs the model.
        cache: Embeddings at hand.
        volume: What is segmented.
        volume_id: Its key in the cache.
        seconds: Time spent so far on embeddings that were not at hand.
    """

    predictor: Predictor
    cache: EmbeddingCache
    volume: Volume
    volume_id: int
    seconds: float = field(default=0.0, init=False)

    def encode(self, rois: Sequence[Roi]) -> list[EncodedRoi]:
        """Return the embeddings of ROIs, encoding in one batch those that are not at hand."""
        started = time.perf_counter()
        keys = [EmbeddingKey(self.volume_id, roi, self.predictor.model_id) for roi in rois]
        found = [self.cache.get(key) for key in keys]
        missing = [n for n, entry in enumerate(found) if entry is None]
        if missing:
            encoded = self.predictor.embed(self.volume, [rois[n] for n in missing])
            for n, entry in zip(missing, encoded, strict=True):
                found[n] = entry
                self.cache.put(keys[n], entry)
            self.seconds += time.perf_counter() - started
        return [entry for entry in found if entry is not None]


def prompts_in_roi(prompts: PromptSet, geometry: Geometry, roi: Roi) -> RoiPrompts:
    """Return the points and the latest box that an ROI holds, in its frame.

    Args:
        prompts: In the voxel frame of the volume; points outside of the ROI have nothing to say
            there.
        geometry: Grid of the volume.
        roi: The ROI.
    """
    positions = np.array([point.position for point in prompts.points]).reshape(-1, 3)
    in_roi = voxel_to_roi(positions, geometry, roi)
    is_positive = np.array([point.positive for point in prompts.points], dtype=np.bool_)
    is_inside = scale.is_in_roi(in_roi, roi)
    box = scale.box_to_roi(prompts.boxes[-1], geometry, roi) if prompts.boxes else None
    return RoiPrompts(in_roi[is_inside], is_positive[is_inside], box)


def looked_at(before: RoundState | None, geometry: Geometry) -> set[Roi]:
    """Return the ROIs whose embeddings the round before has paid for."""
    if before is None or before.roi is None:
        return set()
    mosaic = before.mosaic
    tiles = () if mosaic is None else (mosaic.roi(origin, geometry) for origin in mosaic.origins)
    return {before.roi, *tiles}


def mean_of_looks(
    roi: Roi, own: DecodedMask, others: Sequence[tuple[Roi, DecodedMask]], geometry: Geometry
) -> DecodedMask:
    """Average what was seen in several ROIs around one place, on the lattice of the first.

    Args:
        roi: Whose lattice the mean has.
        own: What was seen there.
        others: What was seen in other ROIs; where they do not reach they have no say.
        geometry: Grid of the volume.

    Returns:
        Mean logits and mean quality.
    """
    total = own.prompt_logits.clone()
    weight = torch.ones_like(total)
    for other, seen in others:
        there = seen.prompt_logits
        reached = resample_logits(torch.ones_like(there), geometry, other, roi) > HALF
        total += torch.where(reached, resample_logits(there, geometry, other, roi), 0.0)
        weight += reached
    mean = total / weight
    quality = sum((seen.quality for _, seen in others), own.quality) / (1 + len(others))
    if mean.shape == own.logits.shape:
        return DecodedMask(mean, mean, quality)
    size = tuple(own.logits.shape)
    full = functional.interpolate(mean[None, None], size=size, mode="trilinear")[0, 0]
    return DecodedMask(full, mean, quality)


@dataclass(frozen=True, eq=False, kw_only=True)
class LookBack:
    """An answer and what the model was given for it, to ask the model about it again.

    Attributes:
        encoder: Embeds ROIs of the volume.
        state: The answer.
        before: The answer without the newest prompt; None without any.
        roi: What the model saw.
        encoded: Its embedding.
        prompts: The points and the box in it.
        fed_logits: The mask from which the newest prompt went on, in the ROI; None where there
            was none.
    """

    encoder: RoiEncoder
    state: RoundState
    before: RoundState | None
    roi: Roi
    encoded: EncodedRoi
    prompts: RoiPrompts
    fed_logits: Tensor | None

    @property
    def geometry(self) -> Geometry:
        """Grid of the volume."""
        return self.encoder.volume.geometry

    @property
    def clicks(self) -> NDArray[np.float64]:
        """The positive points, voxels of the ROI, shape (N, 3)."""
        return self.prompts.points[self.prompts.is_positive]


def look_back(encoder: RoiEncoder, state: RoundState, before: RoundState | None) -> LookBack | None:
    """Gather what the model was given for an answer.

    Where one prompt was played as several points, or the ROI changed on the way, this is how the
    answer would be given in one round.

    Args:
        encoder: Embeds ROIs of the volume.
        state: The answer.
        before: The answer without the newest prompt; None without any.

    Returns:
        None while no prompt has placed the ROI.
    """
    if state.roi is None:
        return None
    geometry = encoder.volume.geometry
    fed = None
    if isinstance(state.prompts.prompts[-1], MaskPrompt):
        fed = state.prompt_logits
    elif before is not None and before.roi is not None and before.prompt_logits is not None:
        fed = before.prompt_logits
        if before.roi != state.roi:
            fed = resample_logits(fed, geometry, before.roi, state.roi)
    return LookBack(
        encoder=encoder,
        state=state,
        before=before,
        roi=state.roi,
        encoded=encoder.encode([state.roi])[0],
        prompts=prompts_in_roi(state.seen.to_voxel(geometry), geometry, state.roi),
        fed_logits=fed,
    )
