r"""Objects larger than the ROI: what the session reaches, and what it would if told the spacing.

    OMP_NUM_THREADS=1 python benchmarks/large_objects.py --pack dev_pack.npz \
        --output benchmarks/large_objects.json

Targets: development structures longer than 128 voxels on their own grid or than the side of the
card's ROI. A simulated user clicks into the middle of the largest mistake. Policies:

* "before": one ROI, made coarser up to twice while a face cuts 2 % of it (version 0.1).
* "default": the session as it is.
* "tiles only": never coarser; overlapping ROIs of the card's spacing alone.
* "told the spacing": one ROI at the spacing at which the true box fits from the first click with a
  margin of a tenth. Truth enters here and nowhere else but in the scoring and the user's clicks.

Beside Dice: `plane`, the largest share of the mask's surface that lies in one plane of the grid
inside the scan (a cut edge is such a plane; that of the truth stands beside it), the milliseconds
of each prompt, and the warnings. `--seconds` bounds the whole; targets are spread over cases, so
that what is left out is left out evenly. What `--gather` names is not played again. Paired
differences to "told the spacing" have intervals that redraw subjects. Needs torch, numpy and scipy;
`--device cuda --workers 32` plays targets side by side.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from prompt_kinds import margins, subject_of
from shards import Machine, add_options, play_jobs, record, show

from fastsam3d.eval.boxed import BoxedMask, boxed_dice
from fastsam3d.eval.cases import EvalCase, load_cases
from fastsam3d.eval.protocol import InteractionProtocol, Target
from fastsam3d.eval.runner import Round as Played
from fastsam3d.eval.runner import answer_point, click_in_box, protocol_clicker
from fastsam3d.model.registry import load_card
from fastsam3d.session import ScalePolicy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastsam3d.session import Session

LARGE_VOXELS = 128
MARGIN = 1.1
CLICKS = 3
ORACLE = "told the spacing"
POLICIES: dict[str, dict[str, Any]] = {
    "before": {"max_tiles": 0},
    "default": {},
    ORACLE: {"max_growths": 0, "max_tiles": 0},
    "tiles only": {"max_growths": 0},
}


def large_targets(cases: list[EvalCase], side_mm: float) -> list[tuple[EvalCase, Target]]:
    """Return what is longer than 128 voxels or than `side_mm`, sources taking turns."""
    found: defaultdict[str, list[tuple[EvalCase, Target]]] = defaultdict(list)
    for case in cases:
        for target in InteractionProtocol(num_clicks=CLICKS).targets(case):
            voxels = np.array(target.truth.region.shape)
            longest_mm = (voxels * case.volume.geometry.spacing).max()
            if voxels.max() > LARGE_VOXELS or longest_mm > side_mm:
                found[case.name].append((case, target))
    queues = list(found.values())
    turns = max(map(len, queues), default=0)
    return [queue[turn] for turn in range(turns) for queue in queues if turn < len(queue)]


def told_spacing(case: EvalCase, target: Target, click: tuple[float, ...], size: int) -> float:
    """Return the spacing in mm at which an ROI around a click holds the true box with a margin."""
    at = np.array(click)
    low, high = np.array(target.truth.region.start) - 0.5, np.array(target.truth.region.stop) - 0.5
    reach = np.maximum(high - at, at - low) * case.volume.geometry.spacing
    return float(2 * MARGIN * reach.max() / size)


def largest_plane(mask: BoxedMask) -> float:
    """Return the largest share of a mask's surface in one plane of the grid inside the scan."""
    inside = np.pad(mask.array, 1)
    if not mask.num_voxels:
        return 0.0
    total, largest = 0, 0
    for axis in range(3):
        step = np.diff(inside.astype(np.int8), axis=axis)
        others = tuple(other for other in range(3) if other != axis)
        for sign in (1, -1):
            counts: NDArray[np.int64] = (step == sign).sum(axis=others)
            total += int(counts.sum())
            first = mask.region.start[axis]
            planes = first + np.arange(len(counts))
            # A slab's outermost slice is often left out: no face of an ROI, but a large plane.
            at_border = (planes <= 1) | (planes >= mask.shape[axis] - 1)
            largest = max(largest, int(counts[~at_border].max(initial=0)))
    return largest / total


@dataclass(frozen=True, kw_only=True)
class Job:
    """A target, and the policies under which it is still to be played."""

    case: EvalCase
    target: Target
    policies: list[str]


def play_policies(session: Session, job: Job) -> list[dict[str, Any]]:
    """Play one target under its policies."""
    base = session.policy
    rows: list[dict[str, Any]] = []
    for name in job.policies:
        session.embeddings.clear()  # each policy pays for its own
        rows.append(play(session, job.case, job.target, name, base))
    return rows


def play(
    session: Session, case: EvalCase, target: Target, name: str, base: ScalePolicy
) -> dict[str, Any]:
    """Play one target under one policy and return its row."""
    show(session, case)
    clicker = protocol_clicker(InteractionProtocol(num_clicks=CLICKS), case, target, 0)
    state = Played(mask=BoxedMask.empty(target.truth.shape))
    settings = dict(POLICIES[name])
    row: dict[str, Any] = defaultdict(list)
    for number in range(1, CLICKS + 1):
        click = click_in_box(state.mask, target.truth, clicker)
        if number == 1 and name == ORACLE and click is not None:
            size = session.predictor.image_size
            settings["spacings_mm"] = (told_spacing(case, target, click.position, size),)
        session.policy = replace(base, **settings) if number == 1 else session.policy
        state = answer_point(session, click, before=state, number=number)
        row["dice"].append(round(boxed_dice(state.mask, target.truth), 4))
        row["plane"].append(round(largest_plane(state.mask), 4))
        row["ms"].append(round(state.encode_ms + state.click_ms))
        row["spacing_mm"].append(round(state.spacing_mm, 3))
        answer = session.prediction
        row["warnings"].append(0 if answer is None else len(answer.warnings))
    session.policy = base
    return {
        "policy": name,
        "source": case.source,
        "subject": subject_of(case),
        "case": case.name,
        "structure": case.structure(target.label),
        "shape": list(target.truth.region.shape),
        "spacing": [round(s, 2) for s in case.volume.geometry.spacing],
        "true_plane": round(largest_plane(target.truth), 4),
        **row,
    }


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means for each policy over the targets that all of them played."""
    by_policy: defaultdict[str, dict[tuple[str, str], dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        by_policy[row["policy"]][row["case"], row["structure"]] = row
    shared = set.intersection(*(set(found) for found in by_policy.values()))
    result: dict[str, Any] = {}
    for name, found in by_policy.items():
        mine = [found[key] for key in sorted(shared)]
        told = [by_policy[ORACLE][key] for key in sorted(shared)] if ORACLE in by_policy else []
        plane = np.array([row["plane"] for row in mine])
        truth = np.array([[row["true_plane"]] for row in mine])
        result[name] = {
            "settings": POLICIES.get(name, {}),
            "targets": len(mine),
            "dice": np.mean([row["dice"] for row in mine], 0).round(4).tolist(),
            "dice_by_source": {
                source: np.mean([r["dice"] for r in mine if r["source"] == source], 0)
                .round(4)
                .tolist()
                for source in sorted({row["source"] for row in mine})
            },
            "largest_plane": plane.mean(0).round(4).tolist(),
            "largest_plane_of_truth": round(float(truth.mean()), 4),
            "flat_ends": (plane > np.maximum(0.1, 2 * truth)).sum(0).tolist(),
            "ms_median": np.median([row["ms"] for row in mine], 0).round().tolist(),
            "ms_worst": np.max([row["ms"] for row in mine], 0).tolist(),
            "warned": np.sum([np.array(row["warnings"]) > 0 for row in mine], 0).tolist(),
        }
        if told and name != ORACLE:
            gain = np.array([r["dice"] for r in mine]) - [r["dice"] for r in told]
            result[name]["over_told"] = [margins(mine, gain[:, n]) for n in range(CLICKS)]
    return result


def main() -> int:
    """Measure; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pack", type=Path, required=True)
    add_options(parser)
    parser.add_argument("--policies", nargs="+", default=list(POLICIES)[:3])
    parser.add_argument("--sources", nargs="+", help="only these")
    parser.add_argument("--limit-targets", type=int, default=None)
    parser.add_argument("--gather", type=Path, nargs="*", default=[], help="records of other runs")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    card = load_card(options.model).preprocessing
    base = ScalePolicy(spacings_mm=card.spacings_mm)
    targets = [
        (case, target)
        for case, target in large_targets(
            load_cases(options.pack), card.image_size * base.spacings_mm[-1]
        )
        if options.sources is None or case.source in options.sources
    ][: options.limit_targets]
    rows = [row for file in options.gather for row in json.loads(file.read_text())["rows"]]
    known = {(row["case"], row["structure"], row["policy"]) for row in rows}
    jobs = [
        Job(
            case=case,
            target=target,
            policies=[
                name
                for name in options.policies
                if (case.name, case.structure(target.label), name) not in known
            ],
        )
        for case, target in targets
    ]
    rows += play_jobs(play_policies, jobs, Machine.of(options))
    failed = [row for row in rows if "error" in row]
    rows = [row for row in rows if "error" not in row]
    result = {
        **record("large_objects.py", options),
        "targets": len(jobs),
        "failed": failed,
        "note": "Development cases; numbers of the default policy were chosen on some of them.",
        "default_policy": asdict(base),
        "policies": summarise(rows) if rows else {},
        "rows": rows,
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, found in result["policies"].items():
        print(f"{name:20s} {found['targets']:3d} {found['dice']} plane {found['largest_plane']}")
        for click, over in enumerate(found.get("over_told", []), start=1):
            print(f"  click {click}: over told {over['mean']:+.3f} {over['mean_95']}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
