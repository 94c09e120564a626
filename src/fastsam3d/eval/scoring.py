"""From rounds to rows: score the mask of each round against the truth of its target."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fastsam3d.eval.metrics import MaskScorer
from fastsam3d.eval.results import ResultRow
from fastsam3d.volume import Region

if TYPE_CHECKING:
    from fastsam3d.eval.boxed import BoxedMask
    from fastsam3d.eval.cases import EvalCase
    from fastsam3d.eval.metrics import Scores
    from fastsam3d.eval.protocol import Target
    from fastsam3d.eval.runner import Round
    from fastsam3d.prompts import Point
    from fastsam3d.volume import Volume

SPARE_SHARE = 0.15
"""A box that must grow gets this part of its sides on top, so that it seldom grows again."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PlayedTarget:
    """All rounds of one target, scored, and what a picture of the last one needs.

    Attributes:
        rows: One per round.
        volume: What the mask lies on.
        truth: The structure.
        mask: The result that counts after the last round.
        clicks: In the voxel frame of `volume`.
    """

    rows: list[ResultRow]
    volume: Volume = field(repr=False)
    truth: BoxedMask = field(repr=False)
    mask: BoxedMask = field(repr=False)
    clicks: tuple[Point, ...] = ()


class TargetScorer:
    """Scores masks against one truth in boxes that hold both, which changes no figure.

    Args:
        truth: The structure.
        spacing: Voxel size in mm.
    """

    def __init__(self, truth: BoxedMask, spacing: tuple[float, float, float]) -> None:
        self.truth = truth
        self.spacing = spacing
        self.voxel_ml = float(np.prod(spacing)) / 1000.0
        self._region = truth.region
        self._scorer: MaskScorer | None = None

    def score(self, mask: BoxedMask) -> Scores:
        """Score a mask on the truth's grid."""
        if self._scorer is None or self._region.union(mask.region) != self._region:
            self._region = self._roomy(self._region.union(mask.region))
            self._scorer = MaskScorer(self.truth.crop(self._region), self.spacing)
        return self._scorer.score(mask.crop(self._region))

    def volume_ml(self, mask: BoxedMask) -> float:
        """Return the volume of a mask on the truth's grid in ml."""
        return mask.num_voxels * self.voxel_ml

    def _roomy(self, region: Region) -> Region:
        i, j, k = (int(SPARE_SHARE * side) + 1 for side in region.shape)
        (a, b, c), (d, e, f) = region.start, region.stop
        grown = Region((a - i, b - j, c - k), (d + i, e + j, f + k))
        return grown.clip(self.truth.shape)


def result_row(
    case: EvalCase, target: Target, seed: int, state: Round, *, scorer: TargetScorer
) -> ResultRow:
    """Score a round.

    Args:
        case: Where the target is.
        target: What was to be segmented.
        seed: Of the simulated user.
        state: The round; its click is taken to be on the case's grid.
        scorer: Of the target's truth, on the grid of the round's mask.
    """
    scores = scorer.score(state.mask)
    return ResultRow(
        case=case.name,
        subject=case.subject or case.name,
        source=case.source,
        label=target.label,
        component=target.component,
        structure=case.structure(target.label),
        seed=seed,
        round=state.number,
        prompt=state.prompt,
        position=state.position,
        positive=state.positive,
        dice=scores.dice,
        nsd_1mm=scores.nsd_1mm,
        nsd_2mm=scores.nsd_2mm,
        hd95_mm=scores.hd95_mm,
        truth_ml=scorer.volume_ml(scorer.truth),
        mask_ml=scorer.volume_ml(state.mask),
        encode_ms=state.encode_ms,
        click_ms=state.click_ms,
        spacing_mm=state.spacing_mm,
        quality=state.quality,
    )
