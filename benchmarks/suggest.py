r"""What is found without a user, and at which stage the rest is lost.

    python benchmarks/suggest.py --pack dev_pack.npz --arms default --output benchmarks/suggest.json

Runs `suggest_objects` on development cases and asks which labelled structures the suggestions hold
(IoU above 0.5). Labels are not all there is in a scan, so suggestions beyond them are not counted
as wrong; how many suggestions hit a labelled structure is given. A structure of fewer than 100
voxels is left out. The truth is used for counting only.

An arm is a policy. For each, the recall of the stages stands beside that of the whole:

* clicked: structures that a click of the lattice lies in (of the first arm's lattice, any level).
* answered: of all answers, whatever their quality, one has the IoU.
* asked again: one is left after the lower thresholds that clicks of the lattice must reach.

Needs torch, numpy and scipy; `--device cuda --workers 8` looks at cases side by side.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from shards import Machine, add_options, play_jobs, record

from fastsam3d.eval.cases import EvalCase, load_cases
from fastsam3d.session import SuggestPolicy, suggest_objects
from fastsam3d.session.suggest_grid import plan_levels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fastsam3d.session import Session, Suggestion

MIN_VOXELS = 100
FOUND_IOU = 0.5
ALL_ANSWERS: dict[str, Any] = {
    "min_quality": 0.0,
    "min_stability": 0.0,
    "max_iou": 1.0,
    "max_suggestions": 4096,
    "recentre": False,
}
ARMS: dict[str, dict[str, Any]] = {
    "default": {},
    "3 and 1.5 mm, one bar": {"spacings_mm": (3.0, 1.5), "first_bar": 1.0},
    "3 and 1.5 mm": {"spacings_mm": (3.0, 1.5)},
    "2 and 1 mm": {"spacings_mm": (2.0, 1.0)},
    "1.5 mm": {"spacings_mm": (1.5,)},
    "1.1 mm": {"spacings_mm": (1.1,)},
    "1.1 mm, one bar": {"spacings_mm": (1.1,), "first_bar": 1.0},
    "1.1 mm, any first answer": {"spacings_mm": (1.1,), "first_bar": 0.0},
    "1.1 mm, core 0.5": {"spacings_mm": (1.1,), "core": 0.5},
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """A case, and how to look at it."""

    case: EvalCase
    arm: str
    policy: SuggestPolicy
    with_stages: bool


def best_ious(
    suggestions: Sequence[Suggestion], labels: NDArray[np.integer]
) -> tuple[dict[int, float], int]:
    """Return the best IoU of each structure, and how many suggestions hit one."""
    sizes = np.bincount(labels.ravel())
    best = {label: 0.0 for label in range(1, len(sizes)) if sizes[label] >= MIN_VOXELS}
    num_hits = 0
    for one in suggestions:
        inside = labels[one.mask.region.slices][one.mask.array]
        shared = np.bincount(inside, minlength=len(sizes))
        ious = {n: shared[n] / (len(inside) + sizes[n] - shared[n]) for n in best}
        num_hits += any(iou > FOUND_IOU for iou in ious.values())
        best = {n: max(best[n], float(ious[n])) for n in best}
    return best, num_hits


def look(session: Session, job: Job) -> list[dict[str, Any]]:
    """Look at one case and return its row."""
    volume, labels, predictor = job.case.volume, job.case.labels, session.predictor
    labels = np.where(np.isin(labels, job.case.ignored), 0, labels) if job.case.ignored else labels
    started = time.perf_counter()
    found = suggest_objects(predictor, volume, job.policy)
    seconds = time.perf_counter() - started
    best, num_hits = best_ious(found, labels)
    row: dict[str, Any] = {
        "arm": job.arm,
        "case": job.case.name,
        "source": job.case.source,
        "structures": len(best),
        "found": _count(best),
        "suggestions": len(found),
        "suggestions_on_structures": num_hits,
        "seconds": round(seconds, 1),
        "best_iou": {str(n): round(iou, 3) for n, iou in best.items()},
    }
    if job.with_stages:
        row["stages"] = _stages(session, job, labels)
    return [row]


def _stages(session: Session, job: Job, labels: NDArray[np.integer]) -> dict[str, Any]:
    volume, policy = job.case.volume, job.policy
    levels = plan_levels(
        volume,
        spacings_mm=policy.spacings_mm,
        size=session.predictor.image_size,
        core=policy.core,
        max_points=policy.max_points,
        min_intensity=policy.min_intensity,
    )
    voxels = np.concatenate([tile.voxels for level in levels for tile in level])
    answers = suggest_objects(session.predictor, volume, replace(policy, **ALL_ANSWERS))
    best = best_ious(answers, labels)[0]
    bar = policy.first_bar if policy.recentre else 1.0
    again = [
        one
        for one in answers
        if one.quality >= bar * policy.min_quality and one.stability >= bar * policy.min_stability
    ]
    clicked = np.unique(labels[tuple(voxels.T)])
    return {
        "clicks": len(voxels),
        "answers": len(answers),
        "answers_asked_again": len(again),
        "clicked": sum(label in clicked for label in best),
        "answered": _count(best),
        "asked_again": _count(best_ious(again, labels)[0]),
    }


def _count(best: dict[int, float]) -> int:
    return sum(iou > FOUND_IOU for iou in best.values())


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return sums over cases for each arm, and by source."""
    result: dict[str, Any] = {}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm]
        words = ("structures", "found", "suggestions", "suggestions_on_structures")
        result[arm] = {word: sum(row[word] for row in mine) for word in words}
        staged = [row["stages"] for row in mine if "stages" in row]
        if staged:
            result[arm]["stages"] = {word: sum(s[word] for s in staged) for word in staged[0]}
        result[arm]["found_by_source"] = {
            source: [
                sum(row["found"] for row in mine if row["source"] == source),
                sum(row["structures"] for row in mine if row["source"] == source),
            ]
            for source in sorted({row["source"] for row in mine})
        }
        result[arm]["seconds_median"] = round(float(np.median([r["seconds"] for r in mine])), 1)
    return result


def main() -> int:
    """Measure; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", help="only these")
    parser.add_argument("--arms", nargs="+", default=["default"], help="names, or 'all'")
    parser.add_argument("--points", type=int, default=SuggestPolicy().max_points)
    parser.add_argument("--no-stages", action="store_true", help="about half the time")
    add_options(parser)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    arms = list(ARMS) if options.arms == ["all"] else options.arms
    cases = [
        case
        for case in load_cases(options.pack)
        if options.cases is None or case.name in options.cases
    ]
    jobs = [
        Job(
            case=case,
            arm=arm,
            policy=SuggestPolicy(**{"max_points": options.points, **ARMS[arm]}),
            with_stages=not options.no_stages,
        )
        for case in sorted(cases, key=lambda case: -case.volume.array.size)
        for arm in arms
    ]
    rows = play_jobs(look, jobs, Machine.of(options))
    failed = [row for row in rows if "error" in row]
    rows = [row for row in rows if "error" not in row]
    figures = {
        **record("suggest.py", options),
        "policies": {job.arm: asdict(job.policy) for job in jobs},
        "failed": failed,
        "arms": summarise(rows),
        "rows": rows,
    }
    options.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    for arm, found in figures["arms"].items():
        print(f"{arm:28s} {found['found']}/{found['structures']} {found.get('stages', '')}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
