r"""What each kind of prompt brings over one point in the middle.

    OMP_NUM_THREADS=1 python benchmarks/prompt_kinds.py --pack dev_pack.npz \
        --output benchmarks/prompt_kinds.json

Protocol "drawn from the truth": every prompt is what a user who knows the structure would draw,
with the looseness of a hand, and every kind is given alone to an empty session.

* point: deepest voxel.  * two points: the same, then the middle of the largest mistake.
* box: the true box, each face off by a normal error of 4 % of its side (at least half a voxel).
* slice box: the same on the slice (across the axis of the widest spacing) with most of it.
* scribble: along the middle of that slice's largest part, the inner 70 % of its length.
* lasso: around that part, 1.5 voxels outside, at most 48 vertices.
* mask prior: the truth grown or shrunk by an eighth of its depth and moved by a quarter of it; the
  answer is asked for with the same point. Its own Dice stands beside it.

Margins are paired with the point's Dice; their interval of 95 % is a bootstrap over subjects'
cases. Targets are spread over sources and structures. Development cases.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import ndimage
from skimage.graph import MCP_Geometric
from skimage.measure import find_contours

from fastsam3d.eval.boxed import BoxedMask, boxed_dice
from fastsam3d.eval.cases import EvalCase, load_cases
from fastsam3d.eval.protocol import InteractionProtocol, Target, user_rng
from fastsam3d.eval.provenance import cpu_name, git_commit
from fastsam3d.prompts import Box, Lasso, MaskPrompt, Point, Scribble, SliceBox
from fastsam3d.prompts.simulate import first_click, next_click
from fastsam3d.session import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastsam3d.segmenter import Prediction

KINDS = ("point", "two points", "box", "slice box", "scribble", "lasso", "mask prior")
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
        depth = ndimage.distance_transform_edt(np.pad(self.part, 1))[1:-1, 1:-1]
        cost = np.where(self.part, 1 / (depth + 0.01) ** 2, -1)
        seed = tuple(np.argwhere(depth == depth.max())[0])
        for _ in range(2):  # from anywhere to one end, from there to the other
            way = MCP_Geometric(np.where(self.part, 1.0, -1))
            reach = np.where(self.part, way.find_costs([seed])[0], -1)
            start, seed = seed, tuple(np.unravel_index(int(reach.argmax()), reach.shape))
        middle = MCP_Geometric(cost)
        middle.find_costs([start])
        path = np.array(middle.traceback(seed))
        cut = round(len(path) * (1 - SCRIBBLE_SHARE) / 2)
        path = path[cut : len(path) - cut][:: max(1, len(path) // 12)]
        return Scribble.voxel(self._in_volume(path), axis=self.axis)

    def lasso(self) -> Lasso:
        """Return an outline around the slice's largest part."""
        margin = int(LASSO_MARGIN) + 2
        outside = ndimage.distance_transform_edt(~np.pad(self.part, margin))
        outlines = find_contours(outside, LASSO_MARGIN)
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


def play(session: Session, hand: Hand, kind: str) -> tuple[list[Prediction], dict[str, float]]:
    """Give one kind of prompt to an empty session; return its answers and further figures."""
    session.reset()
    if kind == "mask prior":
        prior, dice = hand.prior()
        return [session.add_mask(prior), session.add_point(hand.point())], {"prior": round(dice, 4)}
    draw: dict[str, Callable[[], Any]] = {
        "box": hand.box,
        "slice box": hand.slice_box,
        "scribble": hand.scribble,
        "lasso": hand.lasso,
    }
    answers = [session.add(draw.get(kind, hand.point)())]
    if kind == "two points":
        second = hand.correction(answers[-1])
        answers += [] if second is None else [session.add_point(second)]
    return answers, {}


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return Dice and the margin over a point for each kind of prompt."""
    rng = np.random.default_rng(0)
    result: dict[str, Any] = {}
    points = np.array([row["point"]["dice"] for row in rows])
    cases = [row["case"] for row in rows]
    of_case = {case: np.flatnonzero([c == case for c in cases]) for case in dict.fromkeys(cases)}
    draws = [
        np.concatenate([of_case[case] for case in rng.choice(list(of_case), len(of_case))])
        for _ in range(2000)
    ]
    for kind in [kind for kind in KINDS if all(kind in row for row in rows)]:
        dice = np.array([row[kind]["dice"] for row in rows])
        margin = dice - points
        resampled = [margin[chosen].mean() for chosen in draws]
        sources = sorted({row["source"] for row in rows})
        result[kind] = {
            "dice": round(float(dice.mean()), 4),
            "margin": round(float(margin.mean()), 4),
            "margin_95": np.percentile(resampled, [2.5, 97.5]).round(4).tolist(),
            "better_share": round(float((margin > 0).mean()), 3),
            "worse_by_10_points": int((margin < -0.1).sum()),
            "ms_median": round(float(np.median([row[kind]["ms"] for row in rows]))),
            "by_source": {
                source: round(
                    float(np.mean([r[kind]["dice"] for r in rows if r["source"] == source])), 4
                )
                for source in sources
            },
        }
    return result


def main() -> int:
    """Measure; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--model", default="hr_s")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--limit-targets", type=int, default=60)
    parser.add_argument("--skip", type=int, default=0, help="leave so many targets out first")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no target after this")
    parser.add_argument("--rows", type=Path, help="append rows to this file as they come")
    parser.add_argument("--gather", type=Path, nargs="*", default=[], help="rows of other runs")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1 if options.device == "cpu" else torch.get_num_threads())
    session = Session.from_pretrained(options.model, device=options.device)
    started, shown = time.monotonic(), None
    rows = [json.loads(li) for file in options.gather for li in file.read_text().splitlines()]
    for case, target in spread_targets(load_cases(options.pack), options.limit_targets)[
        options.skip :
    ]:
        if time.monotonic() - started > options.seconds:
            break
        if case is not shown:
            session.set_volume(case.volume)
            shown = case
        row: dict[str, Any] = {
            "case": case.name,
            "source": case.source,
            "structure": case.structure(target.label),
        }
        for kind in options.kinds:
            answers, extra = play(session, Hand(case, target), kind)
            last = answers[-1]
            mask = BoxedMask.of(target.truth.shape, last.region, last.region_mask)
            row[kind] = {
                "dice": round(boxed_dice(mask, target.truth), 4),
                "ms": round(sum(answer.encode_ms + answer.click_ms for answer in answers)),
                **extra,
            }
        rows.append(row)
        sys.stderr.write(f"{json.dumps(row)}\n")
        if options.rows is not None:
            with options.rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    result = {
        "command": shlex.join(["python", "benchmarks/prompt_kinds.py", *sys.argv[1:]]),
        "commit": git_commit(Path(__file__).parent),
        "date": datetime.now(UTC).date().isoformat(),
        "device": cpu_name() if options.device == "cpu" else options.device,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "targets": len(rows),
        "protocol": "drawn from the truth (see the script); development cases",
        "kinds": summarise(rows) if rows else {},
        "rows": rows,
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for kind, found in result["kinds"].items():
        print(f"{kind:12s} {found['dice']:.3f} {found['margin']:+.3f} {found['margin_95']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
