"""What a round has in hand: one look of the model, and what became of all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fastsam3d.segmenter import EMPTY_REGION

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from fastsam3d.preprocess.roi import Roi
    from fastsam3d.session.extent import MaskExtent
    from fastsam3d.session.history import RoundState
    from fastsam3d.session.mosaic import Mosaic
    from fastsam3d.session.predictor import DecodedMask
    from fastsam3d.volume import Region


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
        roi: What the model saw at the newest prompt.
        logits: What the next round is fed.
        mosaic: All that was seen, where one ROI was not enough.
    """

    region: Region = EMPTY_REGION
    mask: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 0, 0), np.uint8))
    quality: float = 0.0
    roi: Roi | None = None
    logits: Tensor | None = None
    mosaic: Mosaic | None = None


def repeated(before: RoundState | None) -> Answer:
    """Return the answer of a state again; an empty one where there is none."""
    if before is None:
        return Answer()
    return Answer(
        region=before.prediction.region,
        mask=before.prediction.region_mask,
        quality=before.prediction.predicted_quality,
        roi=before.roi,
        logits=before.prompt_logits,
        mosaic=before.mosaic,
    )
