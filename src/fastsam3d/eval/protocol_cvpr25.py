"""The protocol "cvpr25": the rules of the CVPR 2025 challenge for interactive 3D segmentation.

All classes of a case go together. Round 0 gives each class a box: the one of the file, or, where
the data have none, the published one of the truth (the slice k that halves its voxels, the 2D box
there widened by 0 to 5 pixels per 256, and the range of its slices). Challenge files without boxes
skip the round, which then counts 0. Five clicks per class follow, each where
`fastsam3d.prompts.simulate.challenge_click` says; a class without a mistake gets none. Every voxel
belongs to one class: where masks overlap the smaller one has it, and what is left is scored and
clicked on.

The sum of all answers of a case may take 90 s per class; beyond that all its scores are 0. (The
challenge's own clock includes starting a container.) The rule that NSD at 2 mm counts only where
the mean Dice of a round exceeds 0.2, and the areas under the curves, are applied to the rows by
`fastsam3d.eval.summary`. NSD uses the true voxel sizes; the challenge's script takes ``spacing`` in
the order of the file (see `fastsam3d.eval.challenge`).

Source: CVPR25_iter_eval.py (commit 00201e8) and get_boxes.py (commit 07b3ec3) of
github.com/JunMa11/CVPR-MedSegFMCompetition.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fastsam3d.eval.boxed import BoxedMask
from fastsam3d.eval.challenge import without_overlaps
from fastsam3d.eval.runner import Round, answer_point, click_in_box, timed
from fastsam3d.eval.scoring import PlayedTarget, TargetScorer, result_row
from fastsam3d.prompts import Box
from fastsam3d.prompts.simulate import challenge_click
from fastsam3d.volume import Region

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from fastsam3d.eval.cases import EvalCase
    from fastsam3d.eval.protocol import InteractionProtocol, Target
    from fastsam3d.eval.results import ResultRow
    from fastsam3d.eval.runner import ClickSegmenter
    from fastsam3d.prompts import Point

SECONDS_PER_CLASS = 90.0
BOX_SEED = 2025
MAX_BOX_SHIFT = 6
"""Exclusive; in pixels of a slice of 256."""


@dataclass(eq=False)
class _Player:
    """One class: its own segmenter on the common volume, its rows so far, its last round."""

    target: Target
    segmenter: ClickSegmenter
    scorer: TargetScorer
    state: Round
    shown: BoxedMask
    rows: list[ResultRow] = field(default_factory=list["ResultRow"])
    clicks: list[Point] = field(default_factory=list["Point"])


def play_case(
    segmenter: ClickSegmenter,
    case: EvalCase,
    protocol: InteractionProtocol,
    *,
    done: Collection[tuple[int, int, int]] = (),
) -> Iterator[list[PlayedTarget]]:
    """Play all classes of a case together, or nothing if all are done.

    Args:
        segmenter: Gets `EvalCase.volume`, boxes and points; without ``add_box`` the round of the
            box is skipped.
        case: Volume and truth.
        protocol: Number of clicks, one seed.
        done: Label, component and seed of targets that are done; all of a case or none.

    Yields:
        All targets of the case at once.
    """
    (seed,) = protocol.seeds
    targets = protocol.targets(case)
    if all((target.label, target.component, seed) in done for target in targets):
        return
    segmenter.set_volume(case.volume)
    players = [_player(segmenter, case, target) for target in targets]
    for number in protocol.rounds:
        for player in players:
            player.state = _box_round(player, case) if number == 0 else _click_round(player, number)
        for player, mask in zip(
            players, without_overlaps([player.state.mask for player in players]), strict=True
        ):
            player.shown = BoxedMask.of(mask.shape, mask.region, mask.array)
            shown = replace(player.state, mask=player.shown)
            row = result_row(case, player.target, seed, shown, scorer=player.scorer)
            player.rows.append(row)
    _enforce_time_limit(players)
    yield [
        PlayedTarget(
            rows=player.rows,
            volume=case.volume,
            truth=player.target.truth,
            mask=player.shown,
            clicks=tuple(player.clicks),
        )
        for player in players
    ]


def box_of_truth(truth: BoxedMask, rng: np.random.Generator) -> Region:
    """Return the challenge's box of a structure: a 2D box in a middle slice, over all its slices.

    Args:
        truth: The structure; slices are along its last axis, as in files of axial scans.
        rng: Widens the 2D box.

    Source: mask3D_to_bbox and mask2D_to_bbox of get_boxes.py, written anew. Its random numbers
    follow from the order of a file list; here each class has its own.
    """
    per_slice = truth.array.sum(axis=(0, 1), dtype=np.int64)
    middle = int(np.searchsorted(np.cumsum(per_slice), truth.num_voxels // 2, side="right"))
    outline = np.argwhere(truth.array[:, :, middle])
    low, high = outline.min(axis=0).tolist(), outline.max(axis=0).tolist()
    shift = int(rng.integers(MAX_BOX_SHIFT))
    sides: list[tuple[int, int]] = []
    for axis in range(2):
        first, length = truth.region.start[axis], truth.shape[axis]
        wider = int(shift * length / 256)
        start, stop = first + low[axis] - wider, first + high[axis] + wider + 1
        sides.append((max(0, start), min(length, stop)))
    (i0, i1), (j0, j1) = sides
    return Region((i0, j0, truth.region.start[2]), (i1, j1, truth.region.stop[2]))


def _player(segmenter: ClickSegmenter, case: EvalCase, target: Target) -> _Player:
    own = copy.copy(segmenter)
    own.reset()
    empty = BoxedMask.empty(target.truth.shape)
    return _Player(
        target=target,
        segmenter=own,
        scorer=TargetScorer(target.truth, case.volume.geometry.spacing),
        state=Round(mask=empty),
        shown=empty,
    )


def _box_round(player: _Player, case: EvalCase) -> Round:
    target = player.target
    if case.boxes is None:
        rng = np.random.default_rng([BOX_SEED, target.label, *case.name.encode()])
        region = box_of_truth(target.truth, rng)
    else:
        region = case.boxes.get(target.label)
    if region is None or not hasattr(player.segmenter, "add_box"):
        return player.state
    box = Box.voxel(region.start, region.stop)
    # Looked up by name because not every segmenter takes boxes.
    answer = timed(lambda: cast("Any", player.segmenter).add_box(box), target.truth.shape)
    return replace(answer, number=0, prompt="box")


def _click_round(player: _Player, number: int) -> Round:
    click = click_in_box(player.shown, player.target.truth, challenge_click)
    if click is not None:
        player.clicks.append(click)
    return answer_point(player.segmenter, click, before=player.state, number=number)


def _enforce_time_limit(players: list[_Player]) -> None:
    rows = [row for player in players for row in player.rows]
    taken_s = sum(row.encode_ms + row.click_ms for row in rows) / 1000.0
    if taken_s > SECONDS_PER_CLASS * len(players):
        for player in players:
            player.rows = [replace(row, dice=0.0, nsd_1mm=0.0, nsd_2mm=0.0) for row in player.rows]
