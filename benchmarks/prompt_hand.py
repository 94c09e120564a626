"""A hand that draws prompts from the truth, as a user who knows the structure would.

scikit-image draws lassos and scribbles; it is imported when the first of these is drawn.
"""

from __future__ import annotations

import json
from collections import defaultdict
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from fastsam3d.eval.boxed import BoxedMask
from fastsam3d.eval.cases import EvalCase
from fastsam3d.eval.protocol import InteractionProtocol, Target, user_rng
from fastsam3d.prompts import Box, Lasso, MaskPrompt, Point, Scribble, SliceBox
from fastsam3d.prompts.plain import prompt_from_plain, prompt_to_plain
from fastsam3d.prompts.simulate import first_click, next_click

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from fastsam3d.prompts import Prompt
    from fastsam3d.segmenter import Prediction

BOX_ERROR, LASSO_MARGIN, SCRIBBLE_SHARE, MOST_VERTICES = 0.04, 1.5, 0.7, 48


def spread_targets(cases: list[EvalCase], limit: int) -> list[tuple[EvalCase, Target]]:
    """Return at most `limit` targets: sources take turns, and structures within a source."""
    queues: defaultdict[str, defaultdict[int, list[tuple[EvalCase, Target]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for case in cases:
        for target in InteractionProtocol(num_clicks=1).targets(case):
            queues[case.source][target.label].append((case, target))
    ordered: list[list[tuple[EvalCase, Target]]] = []
    for by_label in queues.values():
        lists = list(by_label.values())
        # Large label lists (whole-body CT) are walked with a stride, so that organs differ.
        lists = [lists[n] for n in np.argsort([(n * 0.618034) % 1 for n in range(len(lists))])]
        turns = max(map(len, lists))
        ordered.append(
            [found[turn] for turn in range(turns) for found in lists if turn < len(found)]
        )
    turns = max(map(len, ordered))
    found = [queue[turn] for turn in range(turns) for queue in ordered if turn < len(queue)]
    return found[:limit]


class Hand:
    """Draws the prompts of one target.

    Args:
        case: Whose grid.
        target: What is meant.
    """

    def __init__(self, case: EvalCase, target: Target) -> None:
        self.case, self.truth = case, target.truth
        self.rng = user_rng(0, case, target)
        self.spacing = case.volume.geometry.spacing
        self.start = np.array(target.truth.region.start)
        # Of equals the last, which is the axis across the slices of most files.
        self.axis = int(np.argmax(np.add(np.round(self.spacing, 2), [0.0, 1e-3, 2e-3])))
        counts = self.truth.array.sum(axis=tuple(a for a in range(3) if a != self.axis))
        self.slice = int(counts.argmax())
        labels, _ = ndimage.label(self.truth.array.take(self.slice, self.axis), np.ones((3, 3)))
        self.part = labels == np.bincount(labels.ravel())[1:].argmax() + 1
        self.plane = [a for a in range(3) if a != self.axis]

    def point(self) -> Point:
        """Return the point in the middle."""
        click = first_click(self.truth.array, self.spacing)
        return Point.voxel((np.array(click.position) + self.start).tolist())

    def correction(self, answer: Prediction) -> Point | None:
        """Return the next point, given an answer; None where it is perfect."""
        found = BoxedMask.of(self.truth.shape, answer.region, answer.region_mask)
        region = found.region.union(self.truth.region)
        click = next_click(found.crop(region), self.truth.crop(region), self.spacing)
        if click is None:
            return None
        at = np.array(click.position) + region.start
        return Point.voxel(at.tolist(), positive=click.positive)

    def box(self) -> Box:
        """Return a box in 3-D."""
        low, high = self._loose(self.start, self.start + self.truth.array.shape)
        low = np.clip(low, 0, np.array(self.truth.shape) - 1)
        high = np.clip(high, low + 1, self.truth.shape)
        return Box.voxel(low.tolist(), high.tolist())

    def slice_box(self) -> SliceBox:
        """Return a box on the slice."""
        at = np.argwhere(self.part) + self.start[self.plane]
        low, high = self._loose(at.min(0), at.max(0) + 1)
        shape = np.array(self.truth.shape)[self.plane]
        low = np.clip(low, 0, shape - 1)
        high = np.clip(high, low + 1, shape)
        return SliceBox.voxel(self.axis, self._slice, low.tolist(), high.tolist())

    def scribble(self) -> Scribble:
        """Return a line along the middle of the slice."""
        geometric: Any = import_module("skimage.graph").MCP_Geometric
        depth = ndimage.distance_transform_edt(np.pad(self.part, 1))[1:-1, 1:-1]
        cost = np.where(self.part, 1 / (depth + 0.01) ** 2, -1)
        seed = tuple(np.argwhere(depth == depth.max())[0])
        for _ in range(2):  # from anywhere to one end, from there to the other
            way = geometric(np.where(self.part, 1.0, -1))
            reach = np.where(self.part, way.find_costs([seed])[0], -1)
            start, seed = seed, tuple(np.unravel_index(int(reach.argmax()), reach.shape))
        middle = geometric(cost)
        middle.find_costs([start])
        path = np.array(middle.traceback(seed))
        cut = round(len(path) * (1 - SCRIBBLE_SHARE) / 2)
        path = path[cut : len(path) - cut][:: max(1, len(path) // 12)]
        return Scribble.voxel(self._in_volume(path), axis=self.axis)

    def lasso(self) -> Lasso:
        """Return an outline around the slice's largest part."""
        margin = int(LASSO_MARGIN) + 2
        outside = ndimage.distance_transform_edt(~np.pad(self.part, margin))
        outlines = import_module("skimage.measure").find_contours(outside, LASSO_MARGIN)
        outline = max(outlines, key=len) - margin
        return Lasso.voxel(
            self._in_volume(outline[:: max(1, -(-len(outline) // MOST_VERTICES))]), axis=self.axis
        )

    def prior(self) -> tuple[MaskPrompt, float]:
        """Return a mask that is roughly right, and its Dice."""
        inside = self.truth.whole()
        depth = ndimage.distance_transform_edt(inside, sampling=self.spacing)
        signed = depth - ndimage.distance_transform_edt(~inside, sampling=self.spacing)
        sign = self.rng.choice([-1.0, 1.0])
        rough = signed > sign * depth.max() / 8
        move = self.rng.normal(size=3)
        move *= depth.max() / 4 / np.linalg.norm(move) / np.array(self.spacing)
        rough = np.roll(rough, np.rint(move).astype(int), (0, 1, 2))
        if not rough.any():
            rough = inside
        overlap = 2 * np.count_nonzero(rough & inside)
        dice = overlap / (np.count_nonzero(rough) + np.count_nonzero(inside))
        return MaskPrompt(rough, self.case.volume.geometry), dice

    @property
    def _slice(self) -> int:
        return int(self.start[self.axis] + self.slice)

    def _loose(self, low: NDArray[Any], high: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        error = np.maximum(BOX_ERROR * (high - low), 0.5)
        moved = [np.rint(face + self.rng.normal(size=len(low)) * error) for face in (low, high)]
        return moved[0].astype(int), moved[1].astype(int)

    def _in_volume(self, path: NDArray[Any]) -> list[list[float]]:
        at = np.insert(path + self.start[self.plane], self.axis, self._slice, axis=1)
        return at.tolist()


def drawn_prompts(
    jobs: list[tuple[EvalCase, Target]], kinds: tuple[str, ...], path: Path | None
) -> list[dict[str, Prompt]]:
    """Return for each target the prompts of some kinds, as drawn, or as a file keeps them.

    Args:
        jobs: The targets.
        kinds: Of "point", "box", "slice box", "scribble", "lasso".
        path: Where they are kept; read where it is there, else written. None keeps nothing.
    """
    kept: dict[str, Any] = {}
    if path is not None and path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
    found: list[dict[str, Prompt]] = []
    num_known = sum(map(len, kept.values()))
    for case, target in jobs:
        known = kept.setdefault(f"{case.name} {target.label} {target.component}", {})
        for kind in kinds:
            if kind not in known:
                hand = Hand(case, target)
                known[kind] = prompt_to_plain(getattr(hand, kind.replace(" ", "_"))())
        found.append({kind: prompt_from_plain(known[kind]) for kind in kinds})
    if path is not None and sum(map(len, kept.values())) > num_known:
        path.write_text(json.dumps(kept), encoding="utf-8")
    return found
