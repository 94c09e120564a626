"""How a model that knows points, boxes and masks answers scribbles, lassos and slice boxes.

Many points given at once mislead it: in training each point after the first corrects a mask. So
what is drawn is played as a user would click it. A first point in the middle (unless a mask is
there already), which a lasso or a slice box completes to a box in 3-D: as wide as it was drawn, as
deep as what the point gave. Then, while the mask and the drawing disagree, one point in the middle
of the largest disagreement. At the end `evidence` binds the voxels that were painted.

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

from fastsam3d.prompts import Box, Lasso, Painted, Point, PromptSet, Scribble, SliceBox
from fastsam3d.prompts.frames import voxel_axis
from fastsam3d.session.evidence import apply_evidence
from fastsam3d.session.history import BUDGET_WARNING, RoundHint
from fastsam3d.session.middle import depth_mm, middle_voxel
from fastsam3d.session.object_mask import ObjectMask

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from fastsam3d.session.history import RoundState
    from fastsam3d.volume import Geometry, Region

    Voxels = NDArray[np.int64]

WELL_INSIDE: Final = 0.5
"""Part of a lasso's greatest depth below which its inside claims nothing: people draw loosely."""
WELL_OUTSIDE: Final = 0.2
"""Part of that depth within which its outside claims nothing."""
BOX_CORE: Final = 0.5
"""Size of what a slice box claims over that of the ellipse within it: structures are round, but a
larger claim makes a correction of every dent."""


MASK_TRIM: Final = 0.5
"""Percent of a mask's voxels that its depth leaves out at each end."""


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
        scribble_points: Points along a first positive scribble that are given at once, its middle
            among them; more than 1 is for models that were trained on scribbles, and a session
            takes the number that its model's card says.
        scribble_reach: How much longer an object is held to be than the scribble along it; 0 for
            not saying.
        smallest_part: A disagreement over less than this part of the drawing is left alone.
        boxes_first_mask: Tell the model the box of a first lasso or slice box: as wide as it was
            drawn, and as deep as the mask of its first point.
        candidate_margin: Another of the model's candidates starts a lasso or slice box if it fits
            the drawing better by more than this IoU; 1 asks for no candidates.
    """

    scribble_corrections: int = 2
    lasso_corrections: int = 5
    slice_box_corrections: int = 5
    scribble_points: int = 1
    scribble_reach: float = 1.4
    smallest_part: float = 0.01
    boxes_first_mask: bool = True
    candidate_margin: float = 1.0


@dataclass(frozen=True, eq=False, kw_only=True)
class _Claim:
    """What a drawing says, in voxels (N, 3) of the volume.

    Attributes:
        seed: Where a first point belongs.
        others: Where further points belong that are given with it, (N, 3).
        is_positive: Its sign.
        inside: Voxels that the mask must hold.
        outside: Voxels that it must not, where farther than `margin_mm` from the drawing.
        drawn: Voxels of the drawing.
        margin_mm: See there.
        limit: Corrections at most.
        extent_mm: How large the object is.
        axis: Across the slice of which the drawing tells the object's width; None where it does
            not.
        is_box: Whether it tells the sides alone.
    """

    seed: Voxels
    is_positive: bool = True
    inside: Voxels = field(default_factory=_no_voxels)
    outside: Voxels = field(default_factory=_no_voxels)
    others: Voxels = field(default_factory=_no_voxels)
    drawn: Voxels
    margin_mm: float = 0.0
    limit: int
    extent_mm: float | None = None
    axis: int | None = None
    is_box: bool = False


@dataclass(frozen=True)
class _Budget:
    """What a prompt may cost, and what one more look at the same place does; 0 for no bound."""

    limit_ms: float
    click_ms: float

    def affords(self, played: list[RoundState]) -> bool:
        """Whether there is room for one more look; the first is always taken."""
        if not self.limit_ms or not played:
            return True
        return _spent_ms(played) + self.click_ms <= self.limit_ms


def play_prompt(
    play_round: PlayRound,
    before: RoundState | None,
    prompts: PromptSet,
    geometry: Geometry,
    policy: DrawnPolicy,
    *,
    budget_ms: float = 0.0,
    click_ms: float = 0.0,
) -> RoundState:
    """Return the state after the newest prompt of a set.

    Args:
        play_round: Plays one round: points, boxes and masks, the new one last, and the state
            before it.
        before: The state after all other prompts; None if there are none.
        prompts: As given, the new one last.
        geometry: Grid of the volume.
        policy: How hard to work on a drawing.
        budget_ms: As `ScalePolicy.budget_ms`: what does not fit is not corrected.
        click_ms: As `ScalePolicy.click_ms`.

    Raises:
        PromptError: A prompt does not fit the volume.
        CheckpointError: The model returned logits that are not finite.
    """
    newest = prompts.prompts[-1]
    if isinstance(newest, Scribble | Lasso | SliceBox | Painted):
        claim = _claim(newest, geometry, policy)
        budget = _Budget(budget_ms, click_ms)
        state = _play_drawn(play_round, before, claim, geometry, policy, budget)
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
    budget: _Budget,
) -> RoundState:
    state = before
    warnings: tuple[str, ...] = ()
    played: list[RoundState] = []
    if state is None or state.roi is None:
        margin = policy.candidate_margin
        fit = None if claim.axis is None or margin >= 1 else _fit_to(claim, claim.axis)
        hint = RoundHint(extent_mm=claim.extent_mm, fit=fit, fit_margin=margin)
        # The latest point is where the model looks.
        voxels = [*claim.others.tolist(), claim.seed.tolist()]
        points = [Point.voxel(voxel, positive=claim.is_positive) for voxel in voxels]
        state = _play_at_once(play_round, state, points, hint)
        played.append(state)
        box = _box_of_first_mask(state, claim) if policy.boxes_first_mask else None
        if box is not None and budget.affords(played):
            hint = RoundHint(spent_ms=_spent_ms(played))
            state = _play_at_once(play_round, state, [box], hint)
            played.append(state)
    for _ in range(claim.limit):
        wrong, positive = _largest_disagreement(state, claim, geometry)
        if len(wrong) <= policy.smallest_part * len(claim.drawn):
            break
        if not budget.affords(played):
            warnings = (BUDGET_WARNING.format(budget.limit_ms),)
            break
        point = Point.voxel(middle_voxel(wrong, geometry).tolist(), positive=positive)
        hint = RoundHint(spent_ms=_spent_ms(played))
        state = _play_at_once(play_round, state, [point], hint)
        played.append(state)
    given = () if before is None else before.seen.boxes
    return replace(
        state,
        # The depth of a box that nobody drew must not bind what the user says next.
        seen=PromptSet(
            tuple(one for one in state.seen if not isinstance(one, Box) or one in given)
        ),
        prediction=replace(
            state.prediction,
            encode_ms=sum(one.prediction.encode_ms for one in played),
            click_ms=sum(one.prediction.click_ms for one in played),
            warnings=tuple(dict.fromkeys((*state.prediction.warnings, *warnings))),
        ),
    )


def _spent_ms(played: list[RoundState]) -> float:
    return sum(one.work_ms for one in played)


def _fit_to(claim: _Claim, axis: int) -> Callable[[Region, NDArray[np.uint8]], float]:
    """Return what tells how well a mask fits a drawing on its slice, 0 to 1."""
    plane = [a for a in range(3) if a != axis]
    number, drawn = int(claim.drawn[0, axis]), claim.drawn[:, plane]
    low, high = drawn.min(axis=0), drawn.max(axis=0) + 1
    inside = np.zeros(high - low, np.bool_)
    inside[tuple((drawn - low).T)] = True

    def fit(region: Region, mask: NDArray[np.uint8]) -> float:
        if not region.start[axis] <= number < region.stop[axis]:
            return 0.0
        found = np.argwhere(mask.take(number - region.start[axis], axis))
        if not len(found):
            return 0.0
        found += np.array(region.start)[plane]
        if claim.is_box:
            first, last = found.min(axis=0), found.max(axis=0) + 1
            shared = np.clip(np.minimum(last, high) - np.maximum(first, low), 0, None).prod()
            return float(shared / ((last - first).prod() + inside.size - shared))
        near = found[np.all((found >= low) & (found < high), axis=1)]
        shared = np.count_nonzero(inside[tuple((near - low).T)])
        return float(shared / (len(found) + len(drawn) - shared))

    return fit


def _box_of_first_mask(state: RoundState, claim: _Claim) -> Box | None:
    """Return the box that is as wide as a drawing and as deep as what a mask has under it."""
    axis = claim.axis
    if axis is None:
        return None
    low, high = claim.drawn.min(axis=0), claim.drawn.max(axis=0) + 1
    mask = ObjectMask.of(state.prediction)
    voxels = np.argwhere(mask.array) + mask.region.start
    plane = [a for a in range(3) if a != axis]
    is_under = np.all((voxels[:, plane] >= low[plane]) & (voxels[:, plane] < high[plane]), axis=1)
    if not is_under.any():
        return None
    first, last = np.percentile(voxels[is_under, axis], [MASK_TRIM, 100 - MASK_TRIM])
    # The slice that was drawn on is in the box, whatever the mask says.
    low[axis], high[axis] = min(low[axis], int(first)), max(high[axis], int(last) + 1)
    return Box.voxel(low.tolist(), high.tolist())


def _play_at_once(
    play_round: PlayRound,
    before: RoundState | None,
    prompts: Sequence[Point | Box],
    hint: RoundHint,
) -> RoundState:
    seen = (PromptSet() if before is None else before.seen).add(*prompts)
    return replace(play_round(seen, before, hint), seen=seen)


def _spread(voxels: Voxels, seed: Voxels, count: int, geometry: Geometry) -> Voxels:
    """Return so many of a set of voxels, each as far as can be from the seed and those before."""
    at_mm = voxels * np.asarray(geometry.spacing)
    distance = np.linalg.norm(at_mm - seed * np.asarray(geometry.spacing), axis=1)
    chosen: list[int] = []
    for _ in range(min(count, len(voxels))):
        farthest = int(distance.argmax())
        if not distance[farthest]:
            break
        chosen.append(farthest)
        distance = np.minimum(distance, np.linalg.norm(at_mm - at_mm[farthest], axis=1))
    return voxels[np.array(chosen, np.int64)]


def _claim(
    prompt: Scribble | Lasso | SliceBox | Painted, geometry: Geometry, policy: DrawnPolicy
) -> _Claim:
    is_stroke = isinstance(prompt, Painted) and prompt.lasso_axis is None
    if isinstance(prompt, Scribble) or (isinstance(prompt, Painted) and is_stroke):
        line = prompt.line(geometry)
        seed = middle_voxel(line, geometry)
        count = policy.scribble_points - 1 if prompt.positive else 0
        claim = _Claim(
            seed=seed,
            others=_spread(line, seed, count, geometry),
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
        axis=moved.axis,
        is_box=True,
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
    axis = prompt.lasso_axis if isinstance(prompt, Painted) else None
    if isinstance(prompt, Lasso):
        axis = voxel_axis(prompt.axis, prompt.frame, geometry)
    return replace(
        claim,
        axis=axis,
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
