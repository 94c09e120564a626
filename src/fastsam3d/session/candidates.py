"""What else a prompt may have meant: up to three masks to choose from.

A click on a kidney's cyst may mean the cyst, the kidney or both kidneys. The models were trained to
give three masks for an ambiguous first click besides the settled one. With the weights that ship,
one of the three is nearly the settled mask, one is smaller (a part) and one is larger (the whole
that it belongs to), at first clicks and later ones alike. So the candidates are the answer and
those of the three that differ from it. They cost one more decoding; one that runs out of what the
model looked at is followed by further looks, as the answer was.

Candidates are ordered by predicted quality. On development cases the model always rated its settled
mask highest (benchmarks/uncertainty.json), so the order does not say which one the user meant: show
all of them. They differ where the model looked at the newest prompt; beyond, where an object is
larger than that, they are the answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from fastsam3d.prompts import MaskPrompt
from fastsam3d.session.evidence import apply_evidence
from fastsam3d.session.object_mask import ObjectMask

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastsam3d.preprocess.roi import Roi
    from fastsam3d.session.answers import Answer
    from fastsam3d.session.looks import LookBack
    from fastsam3d.session.predictor import DecodedMask
    from fastsam3d.volume import Geometry

CandidateKind = Literal["answer", "part", "whole"]

MAX_CANDIDATES: Final = 3
SAME_IOU: Final = 0.8
"""Masks that overlap more than this are one candidate."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Candidate:
    """A mask that the prompts may have meant.

    Attributes:
        kind: "answer" is the mask that is shown; "part" is smaller, "whole" larger.
        mask: Its voxels.
        quality: The model's own estimate of its IoU.
        roi: What the model saw.
        geometry: Grid of the volume.
    """

    kind: CandidateKind
    mask: ObjectMask
    quality: float
    roi: Roi
    geometry: Geometry = field(repr=False)

    @property
    def prompt(self) -> MaskPrompt:
        """What records the choice in a log: this mask, voxel by voxel, as the answer."""
        return MaskPrompt.of_part(self.mask.region, self.mask.array, self.geometry).as_answer()


def find_candidates(
    look: LookBack, follow: Callable[[DecodedMask], Answer]
) -> tuple[Candidate, ...]:
    """Return the masks that the prompts so far may have meant, best predicted quality first.

    Args:
        look: The answer and what the model was given for it.
        follow: Makes the answer that a mask of the ROI would have become.

    Returns:
        Up to `MAX_CANDIDATES` different masks, none empty; the answer is one of them unless it
        is empty. All but the answer hold a positive click where there are any, and what was
        painted binds them as it binds the answer.

    Raises:
        CheckpointError: The model returned logits that are not finite.
    """
    shown = look.state.prediction
    answer = ObjectMask.of(shown)
    kept = [_candidate(look, answer, shown.predicted_quality, answer)]
    decoded = look.encoder.predictor.decode_all(
        look.encoded, look.prompts, mask_logits_SSS=look.fed_logits
    )
    for one in sorted(decoded, key=lambda mask: -mask.quality):
        mask = _mask_of(look, follow(one))
        is_other = all(_iou(mask, known.mask) <= SAME_IOU for known in kept)
        if is_other and _holds_a_click(look, mask):
            kept.append(_candidate(look, mask, one.quality, answer))
    found = [candidate for candidate in kept if not candidate.mask.is_empty]
    # The sort is stable: the answer comes first among equals.
    return tuple(sorted(found[:MAX_CANDIDATES], key=lambda candidate: -candidate.quality))


def _candidate(look: LookBack, mask: ObjectMask, quality: float, answer: ObjectMask) -> Candidate:
    kind: CandidateKind = "part" if mask.num_voxels < answer.num_voxels else "whole"
    return Candidate(
        kind="answer" if mask is answer else kind,
        mask=mask,
        quality=quality,
        roi=look.roi,
        geometry=look.geometry,
    )


def _mask_of(look: LookBack, found: Answer) -> ObjectMask:
    """Return a mask as a round would have shown it."""
    return ObjectMask.cropped(
        *apply_evidence(found.region, found.mask, look.state.prompts, look.geometry)
    )


def _holds_a_click(look: LookBack, mask: ObjectMask) -> bool:
    points = look.state.seen.to_voxel(look.geometry).points
    clicks = [np.floor(np.add(p.position, 0.5)).astype(int) for p in points if p.positive]
    return not clicks or any(mask.holds(tuple(voxel.tolist())) for voxel in clicks)


def _iou(a: ObjectMask, b: ObjectMask) -> float:
    shared = a.intersection(b).num_voxels
    return shared / max(1, a.num_voxels + b.num_voxels - shared)
