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

Arms are kinds of prompt played under other settings than the default, for choosing these. Margins
are paired with the point's Dice, and with the default of the same kind; their intervals of 95 %
redraw subjects (all their scans and structures together). "macro" is the mean over sources of means
over structures, as in the README. Development cases: what was chosen on them is not tested by them;
"held out" therefore gives every subject the arm that was best on the other half of the subjects.

Lassos and scribbles are drawn with scikit-image; `--drawn` keeps them in a file, made if absent, so
that a machine with torch, numpy and scipy alone can play them. `--device cuda --workers 32` plays
targets side by side.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from prompt_hand import Hand, drawn_prompts, spread_targets
from shards import Machine, add_options, play_jobs, record, show

from fastsam3d.eval.boxed import BoxedMask, boxed_dice
from fastsam3d.eval.cases import load_cases
from fastsam3d.eval.statistics import Place, estimate, macro_with_bootstrap
from fastsam3d.session.drawn_rounds import DrawnPolicy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastsam3d.eval.cases import EvalCase
    from fastsam3d.eval.protocol import Target
    from fastsam3d.prompts import Prompt
    from fastsam3d.segmenter import Prediction
    from fastsam3d.session import Session

KINDS = ("point", "two points", "box", "slice box", "scribble", "lasso", "mask prior")
DRAWN = ("point", "box", "slice box", "scribble", "lasso")
# Several scans of one subject share these first characters of their names.
SUBJECT = re.compile(r"acdc__p\d+|brats2015__pat\d+|ibsi_sts__STS_\d+|totalsegmentator__ct")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A kind of prompt under settings.

    Attributes:
        kind: One of `KINDS`.
        drawn: Fields of `DrawnPolicy` that differ from the default.
        scale: Fields of `ScalePolicy` that do.
    """

    kind: str
    drawn: dict[str, Any]
    scale: dict[str, Any]


def _arms(kind: str, settings: dict[str, dict[str, Any]]) -> dict[str, Arm]:
    drawn = {item.name for item in fields(DrawnPolicy)}
    return {
        f"{kind}, {words}": Arm(
            kind=kind,
            drawn={key: value for key, value in chosen.items() if key in drawn},
            scale={key: value for key, value in chosen.items() if key not in drawn},
        )
        for words, chosen in settings.items()
    }


# Always a spacing of its own, even where that of a click would do.
FITTED: dict[str, Any] = {
    "smallest_extent": 0.44,
    "target_extent": 0.45,
    "largest_extent": 0.46,
    "drawn_extent": 0.45,
}
ARMS: dict[str, Arm] = {
    **{kind: Arm(kind=kind, drawn={}, scale={}) for kind in KINDS},
    **_arms(
        "box",
        {
            "no candidates": {"box_margin": 1.0},
            "candidates by 0.1": {"box_margin": 0.1},
            "one tissue": {"box_tissues": 0},
            "two tissues": {"box_tissues": 2},
            "tissues below 0.6": {"box_fit": 0.6},
            "fitted to 0.6": {"box_extent": 0.6},
            "fitted to 0.6, repeated": {"box_extent": 0.6, "box_repeats": 1},
            "fitted to 0.6, no candidates": {"box_extent": 0.6, "box_margin": 1.0},
            "fitted to 0.45": {"box_extent": 0.45},
            "repeated": {"box_repeats": 1},
        },
    ),
    **_arms(
        "slice box",
        {
            "no box": {"boxes_first_mask": False},
            "candidates by 0.1": {"candidate_margin": 0.1},
            "fitted to 0.45": FITTED,
            "2 points": {"slice_box_corrections": 2},
        },
    ),
    **_arms(
        "lasso",
        {
            "no box": {"boxes_first_mask": False},
            "candidates by 0.1": {"candidate_margin": 0.1},
            "fitted to 0.45": FITTED,
        },
    ),
    **_arms(
        "scribble",
        {
            "5 points": {"scribble_corrections": 5},
            "3 at once": {"scribble_points": 3},
            "5 at once": {"scribble_points": 5},
            "any extent": {"scribble_reach": 0.0},
            "fitted to 0.45": FITTED,
        },
    ),
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """A target, and what is drawn of it, by kind."""

    case: EvalCase
    target: Target
    drawn: dict[str, Prompt]


def play_arms(
    session: Session, job: Job, arms: list[str], *, keeps_embeddings: bool
) -> list[dict[str, Any]]:
    """Play one target under some arms and return its row."""
    row: dict[str, Any] = {
        "case": job.case.name,
        "source": job.case.source,
        "subject": subject_of(job.case),
        "structure": job.case.structure(job.target.label),
    }
    base = replace(session.policy)
    for name in arms:
        arm = ARMS[name]
        session.policy, session.drawn = replace(base, **arm.scale), DrawnPolicy(**arm.drawn)
        show(session, job.case)
        answers, extra = play(session, job, arm.kind)
        last = answers[-1]
        mask = BoxedMask.of(job.target.truth.shape, last.region, last.region_mask)
        row[name] = {
            "dice": round(boxed_dice(mask, job.target.truth), 4),
            "ms": round(sum(answer.encode_ms + answer.click_ms for answer in answers)),
            **extra,
        }
        if not keeps_embeddings:
            session.embeddings.clear()
    session.policy = base
    return [row]


def play(session: Session, job: Job, kind: str) -> tuple[list[Prediction], dict[str, float]]:
    """Give one kind of prompt to an empty session; return its answers and further figures."""
    if kind == "mask prior":
        prior, dice = Hand(job.case, job.target).prior()
        answers = [session.add_mask(prior), session.add(job.drawn["point"])]
        return answers, {"prior": round(dice, 4)}
    answers = [session.add(job.drawn[kind if kind in DRAWN else "point"])]
    if kind == "two points":
        second = Hand(job.case, job.target).correction(answers[-1])
        answers += [] if second is None else [session.add(second)]
    return answers, {}


def subject_of(case: EvalCase) -> str:
    """Return who was scanned."""
    found = SUBJECT.match(case.name)
    return case.subject or (found.group() if found else case.name)


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return Dice and the margins of each arm."""
    names = [name for name in ARMS if all(name in row for row in rows)]
    dice = np.array([[row[name]["dice"] for name in names] for row in rows])
    result: dict[str, Any] = {}
    for n, name in enumerate(names):
        kind = ARMS[name].kind
        mine = [row[name] for row in rows]
        result[name] = {
            "kind": kind,
            "drawn": ARMS[name].drawn,
            "scale": ARMS[name].scale,
            "dice": round(float(dice[:, n].mean()), 4),
            **_by_source(rows, dice[:, n]),
            "ms_median": round(float(np.median([one["ms"] for one in mine]))),
        }
        for word, other in {"over_point": "point", "over_default": kind}.items():
            if other in names and other != name:
                result[name][word] = margins(rows, dice[:, n] - dice[:, names.index(other)])
    return result


def _by_source(rows: list[dict[str, Any]], values: NDArray[np.float64]) -> dict[str, Any]:
    found = macro_with_bootstrap(_places(rows), values[:, None], draws=1)
    sources = sorted(found.by_source.items())
    return {
        "macro": round(float(found.macro[0]), 4),
        "by_source": {source: round(float(mean[0]), 4) for source, mean in sources},
    }


def margins(rows: list[dict[str, Any]], margin: NDArray[np.float64]) -> dict[str, Any]:
    """Return a paired difference as means over targets and over sources, with intervals."""
    subjects = [row["subject"] for row in rows]
    of_subject = [np.flatnonzero([s == one for s in subjects]) for one in dict.fromkeys(subjects)]
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(of_subject), size=(2000, len(of_subject)))
    sums = np.array([margin[own].sum() for own in of_subject])
    counts = np.array([len(own) for own in of_subject])
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    macro = macro_with_bootstrap(_places(rows), margin[:, None])
    of_macro = estimate(float(macro.macro[0]), macro.draws[:, 0])
    return {
        "mean": round(float(margin.mean()), 4),
        "mean_95": np.percentile(means, [2.5, 97.5]).round(4).tolist(),
        "macro": round(float(macro.macro[0]), 4),
        "macro_95": [round(of_macro.low or 0.0, 4), round(of_macro.high or 0.0, 4)],
        "better_share": round(float((margin > 0).mean()), 3),
        "worse_by_10_points": int((margin < -0.1).sum()),
    }


def _places(rows: list[dict[str, Any]]) -> list[Place]:
    return [
        Place(source=row["source"], structure=row["structure"], subject=row["subject"])
        for row in rows
    ]


def held_out(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the best arm of each kind brings where it was not chosen.

    Subjects are dealt in two halves; each half is played by the arm that was best (mean Dice over
    targets) on the other one.
    """
    subjects = list(dict.fromkeys(row["subject"] for row in rows))
    half = np.array([subjects.index(row["subject"]) % 2 for row in rows])
    points = np.array([row["point"]["dice"] for row in rows])
    result: dict[str, Any] = {}
    for kind in KINDS[1:]:
        names = [n for n, arm in ARMS.items() if arm.kind == kind and all(n in r for r in rows)]
        if len(names) < 2 or half.min() == half.max():
            continue
        dice = np.array([[row[name]["dice"] for name in names] for row in rows])
        chosen = [int(dice[half != side].mean(0).argmax()) for side in (0, 1)]
        mine = np.where(half == 0, dice[:, chosen[0]], dice[:, chosen[1]])
        result[kind] = {
            "arms": [names[n] for n in chosen],
            "dice": round(float(mine.mean()), 4),
            "over_point": margins(rows, mine - points),
            "over_default": margins(rows, mine - dice[:, names.index(kind)]),
        }
    return result


def main() -> int:
    """Measure; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pack", type=Path, required=True)
    add_options(parser)
    parser.add_argument("--arms", nargs="+", default=list(KINDS), help="names, or 'all'")
    parser.add_argument("--limit-targets", type=int, default=60)
    parser.add_argument("--skip", type=int, default=0, help="leave so many targets out first")
    parser.add_argument("--drawn", type=Path, help="keep drawings here, or take them from here")
    parser.add_argument(
        "--keep-embeddings", action="store_true", help="arms share them: faster, without times"
    )
    parser.add_argument("--gather", type=Path, nargs="*", default=[], help="records of other runs")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    arms = list(ARMS) if options.arms == ["all"] else options.arms
    targets = spread_targets(load_cases(options.pack), options.limit_targets)[options.skip :]
    drawn = drawn_prompts(targets, DRAWN, options.drawn)
    jobs = [Job(case=c, target=t, drawn=d) for (c, t), d in zip(targets, drawn, strict=True)]
    rows = [row for file in options.gather for row in json.loads(file.read_text())["rows"]]
    play_job = partial(play_arms, arms=arms, keeps_embeddings=options.keep_embeddings)
    rows += play_jobs(play_job, jobs, Machine.of(options))
    failed = [row for row in rows if "error" in row]
    rows = [row for row in rows if "error" not in row]
    result = {
        **record("prompt_kinds.py", options),
        "targets": len(rows),
        "failed": failed,
        "protocol": "drawn from the truth (see the script); development cases",
        "arms": summarise(rows) if rows else {},
        "held_out": held_out(rows) if rows and "point" in rows[0] else {},
        "rows": rows,
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, found in result["arms"].items():
        over = found.get("over_point", {"mean": 0.0, "mean_95": "", "macro": 0.0, "macro_95": ""})
        print(
            f"{name:32s} {found['dice']:.3f} {over['mean']:+.3f} {over['mean_95']} "
            f"macro {found['macro']:.3f} {over['macro']:+.3f} {over['macro_95']} "
            f"{found['ms_median']} ms"
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
