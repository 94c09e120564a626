"""How a model that knows points, boxes and masks answers scribbles, lassos and slice boxes.

Many points given at once mislead it: in training each point after the first corrects a mask. So
what is drawn is played as a user would click it. A first point in the middle (unless a mask is
there already), and then, while the mask and the drawing disagree, one point in the middle of the
largest disagreement. At the end `evidence` binds the voxels that were painted.

What a drawing says about a mask:

==============  ===============================  =========================================
drawing         must be in the mask              must not
==============  ===============================  =========================================
scribble        its line                         (negative) its line
lasso           its inside, well inside          the rest of its slice, well outside;
                                                 (negative) its inside
slice box       middle of the ellipse within it  the rest of its slice
==============  ===============================  =========================================
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from fastsam3d.prompts import Lasso, Painted, Point, PromptSet, Scribble, SliceBox
from fastsam3d.session.evidence import apply_evidence
from fastsam3d.session.history import BUDGET_WARNING, RoundHint
from fastsam3d.session.middle import depth_mm, middle_voxel
from fastsam3d.session.object_mask import ObjectMask

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastsam3d.session.history import RoundState
    from fastsam3d.volume import Geometry

    Voxels = NDArray[np.int64]

WELL_INSIDE: Final = 0.5
"""Part of a lasso's greatest depth below which its inside claims nothing: people draw loosely."""
WELL_OUTSIDE: Final = 0.2
"""Part of that depth within which its outside claims nothing."""
BOX_CORE: Final = 0.5
"""Size of what a slice box claims over that of the ellipse within it: structures are round, but a
larger claim makes a correction of every dent."""


class PlayRound(Protocol):
    """Plays one round of points, boxes and masks."""

    def __call__(
        self, given: PromptSet, before: RoundState | None, hint: RoundHint = ..., /
    ) -> RoundState:
        """Return the state after `given`, the new one last, and the state before it."""
        ...


def _no_voxels() -> NDArray[np.int64]:
    return np.zeros((0, 3), np.int64)


@dataclass(frozen=True, kw_only=True)
class DrawnPolicy:
    """How hard a session works on a drawing; the defaults were chosen on 20 development targets.

    Attributes:
        scribble_corrections: At most so many points after the first one.
        lasso_corrections: As for scribbles.
        slice_box_corrections: As for scribbles.
        scribble_reach: How much longer an object is held to be than the scribble along it; 0 for
            not saying.
        smallest_part: A disagreement over less than this part of the drawing is left alone.
    """

    scribble_corrections: int = 2
    lasso_corrections: int = 5
    slice_box_corrections: int = 5
    scribble_reach: float = 1.4
    smallest_part: float = 0.01


@dataclass(frozen=True, eq=False, kw_only=True)
class _Claim:
    """What a drawing says, in voxels (N, 3) of the volume.

    Attributes:
        seed: Where a first point belongs.
        is_positive: Its sign.
        inside: Voxels that the mask must hold.
        outside: Voxels that it must not, where farther than `margin_mm` from the drawing.
        drawn: Voxels of the drawing.
        margin_mm: See there.
        limit: Corrections at most.
        extent_mm: How large the object is.
    """

    seed: Voxels
    is_positive: bool = True
    inside: Voxels = field(default_factory=_no_voxels)
    outside: Voxels = field(default_factory=_no_voxels)
    drawn: Voxels
    margin_mm: float = 0.0
    limit: int
    extent_mm: float | None = None


def play_prompt(
    play_round: PlayRound,
    before: RoundState | None,
    prompts: PromptSet,
    geometry: Geometry,
    policy: DrawnPolicy,
    *,
    budget_ms: float = 0.0,
) -> RoundState:
    """Return the state after the newest prompt of a set.

    Args:
        play_round: Plays one round: points, boxes and masks, the new one last, and the state
            before it.
        before: The state after all other prompts; None if there are none.
        prompts: As given, the new one last.
        geometry: Grid of the volume.
        policy: How hard to work on a drawing.
        budget_ms: As `ScalePolicy.budget_ms`: once it is spent, nothing more is corrected.

    Raises:
        PromptError: A prompt does not fit the volume.
        CheckpointError: The model returned logits that are not finite.
    """
    newest = prompts.prompts[-1]
    if isinstance(newest, Scribble | Lasso | SliceBox | Painted):
        claim = _claim(newest, geometry, policy)
        state = _play_drawn(play_round, before, claim, geometry, policy, budget_ms=budget_ms)
    else:
        seen = (PromptSet() if before is None else before.seen).add(newest)
        state = replace(play_round(seen, before), seen=seen)
    shown = state.prediction
    region, mask = apply_evidence(shown.region, shown.region_mask, prompts, geometry)
    mask.setflags(write=False)
    return replace(
        state, prompts=prompts, prediction=replace(shown, region=region, region_mask=mask)
    )


def _play_drawn(
    play_round: PlayRound,
    before: RoundState | None,
    claim: _Claim,
    geometry: Geometry,
    policy: DrawnPolicy,
    *,
    budget_ms: float,
) -> RoundState:
    state = before
    warnings: tuple[str, ...] = ()
    played: list[RoundState] = []
    if state is None or state.roi is None:
        hint = RoundHint(extent_mm=claim.extent_mm)
        state = _play_point(play_round, state, claim.seed, positive=claim.is_positive, hint=hint)
        played.append(state)
    for _ in range(claim.limit):
        wrong, positive = _largest_disagreement(state, claim, geometry)
        if len(wrong) <= policy.smallest_part * len(claim.drawn):
            break
        hint = RoundHint(spent_ms=sum(one.work_ms for one in played))
        if budget_ms and hint.spent_ms >= budget_ms:
            warnings = (BUDGET_WARNING.format(budget_ms),)
            break
        voxel = middle_voxel(wrong, geometry)
        state = _play_point(play_round, state, voxel, positive=positive, hint=hint)
        played.append(state)
    return replace(
        state,
        prediction=replace(
            state.prediction,
            encode_ms=sum(one.prediction.encode_ms for one in played),
            click_ms=sum(one.prediction.click_ms for one in played),
            warnings=tuple(dict.fromkeys((*state.prediction.warnings, *warnings))),
        ),
    )


def _play_point(
    play_round: PlayRound,
    before: RoundState | None,
    voxel: Voxels,
    *,
    positive: bool,
    hint: RoundHint,
) -> RoundState:
    point = Point.voxel(voxel.tolist(), positive=positive)
    seen = (PromptSet() if before is None else before.seen).add(point)
    return replace(play_round(seen, before, hint), seen=seen)


def _claim(
    prompt: Scribble | Lasso | SliceBox | Painted, geometry: Geometry, policy: DrawnPolicy
) -> _Claim:
    is_stroke = isinstance(prompt, Painted) and prompt.lasso_axis is None
    if isinstance(prompt, Scribble) or (isinstance(prompt, Painted) and is_stroke):
        line = prompt.line(geometry)
        claim = _Claim(
            seed=middle_voxel(line, geometry),
            is_positive=prompt.positive,
            drawn=line,
            limit=policy.scribble_corrections,
            extent_mm=_extent_mm(line, geometry) * policy.scribble_reach,
        )
        return replace(claim, inside=line) if prompt.positive else replace(claim, outside=line)
    if isinstance(prompt, Lasso | Painted):
        return _lasso_claim(prompt, geometry, policy)
    moved = prompt.to_voxel(geometry)
    inside = np.argwhere(np.ones(moved.region.shape, np.bool_)) + moved.region.start
    from_centre = (inside - inside.mean(axis=0)) / (np.array(moved.region.shape) / 2)
    return _Claim(
        seed=middle_voxel(inside, geometry),
        inside=inside[np.linalg.norm(from_centre, axis=1) <= BOX_CORE],
        outside=_rest_of_slice(moved, geometry),
        drawn=inside,
        limit=policy.slice_box_corrections,
        extent_mm=_extent_mm(inside, geometry),
    )


def _lasso_claim(prompt: Lasso | Painted, geometry: Geometry, policy: DrawnPolicy) -> _Claim:
    voxels = prompt.voxels(geometry)
    depth = depth_mm(voxels, geometry)
    claim = _Claim(
        seed=middle_voxel(voxels, geometry),
        is_positive=prompt.positive,
        drawn=voxels,
        limit=policy.lasso_corrections,
        extent_mm=_extent_mm(voxels, geometry),
    )
    if not prompt.positive:
        return replace(claim, outside=voxels)
    return replace(
        claim,
        inside=voxels[depth >= WELL_INSIDE * depth.max()],
        outside=prompt.outside(geometry),
        margin_mm=WELL_OUTSIDE * float(depth.max()),
    )


def _extent_mm(voxels: Voxels, geometry: Geometry) -> float:
    return float(((np.ptp(voxels, axis=0) + 1) * geometry.spacing).max())


def _rest_of_slice(box: SliceBox, geometry: Geometry) -> Voxels:
    """Return the voxels of a voxel box's slice that are not in the box."""
    shape = list(geometry.shape)
    shape[box.axis] = 1
    index = list(box.region.slices)
    index[box.axis] = slice(None)
    rest = np.ones(shape, np.bool_)
    rest[tuple(index)] = False
    voxels = np.argwhere(rest)
    voxels[:, box.axis] = box.region.start[box.axis]
    return voxels


def _largest_disagreement(
    state: RoundState, claim: _Claim, geometry: Geometry
) -> tuple[Voxels, bool]:
    """Return the voxels in which mask and drawing disagree, and the sign of what corrects them."""
    mask = ObjectMask.of(state.prediction)
    missed = claim.inside[~_lookup(mask, claim.inside)]
    spilled = claim.outside[_lookup(mask, claim.outside)]
    if claim.margin_mm and len(spilled):
        spilled = spilled[_distance(spilled, claim.drawn, geometry) > claim.margin_mm]
    return (missed, True) if len(missed) >= len(spilled) else (spilled, False)


def _lookup(mask: ObjectMask, voxels: Voxels) -> NDArray[np.bool_]:
    at = voxels - mask.region.start
    is_near = np.all((at >= 0) & (at < mask.region.shape), axis=1)
    found = np.zeros(len(voxels), np.bool_)
    found[is_near] = mask.array[tuple(at[is_near].T)]
    return found


def _distance(voxels: Voxels, target: Voxels, geometry: Geometry) -> NDArray[np.float64]:
    """Return how far each voxel is from a set, mm."""
    spatial: Any = import_module("scipy.spatial")
    tree = spatial.cKDTree(target * np.asarray(geometry.spacing))
    return tree.query(voxels * np.asarray(geometry.spacing))[0]
