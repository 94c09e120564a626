"""What it takes to look at an ROI: its embedding, and the prompts in its frame.

Shared by the rounds that answer prompts and by what is asked about an answer afterwards.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fastsam3d.preprocess.roi import voxel_to_roi
from fastsam3d.session import scale
from fastsam3d.session.cache import EmbeddingKey
from fastsam3d.session.predictor import RoiPrompts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastsam3d.preprocess.roi import Roi
    from fastsam3d.prompts import PromptSet
    from fastsam3d.session.cache import EmbeddingCache
    from fastsam3d.session.predictor import EncodedRoi, Predictor
    from fastsam3d.volume import Geometry, Volume


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
