r"""Whether answers come within the budget that `Session.set_budget` was given.

    OMP_NUM_THREADS=1 python benchmarks/budget.py --pack dev_pack.npz \
        --output benchmarks/budget.json

Targets are the development structures that take most work: those larger than an ROI (see
large_objects.py), cases taking turns. Each is asked for by three clicks into the middle of the
largest mistake, and then anew by a lasso, which is played as several clicks, and by a box. A
prompt's time is that between the call and its answer. A budget cannot be kept by less than one
look, which is always taken, so it counts as kept where the time is within the budget or the price
of one look, whichever is more; "late" is the share of that by which the time is beyond. Prices are
measured anew for each target, as a program would at its start.

Times need a quiet machine; on a shared one `--clock process` takes prices and times from the
processor time of the one thread that works, which is what a quiet machine would show. Truth places
prompts and scores masks, nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from large_objects import large_targets
from prompt_hand import Hand, drawn_prompts
from shards import Machine, add_options, play_jobs, record, show

from fastsam3d.eval.boxed import BoxedMask, boxed_dice
from fastsam3d.eval.cases import load_cases
from fastsam3d.model.registry import load_card
from fastsam3d.session.budget import policy_within

if TYPE_CHECKING:
    from fastsam3d.eval.cases import EvalCase
    from fastsam3d.eval.protocol import Target
    from fastsam3d.prompts import Prompt
    from fastsam3d.session import Session

BUDGETS_MS = (0.0, 500.0, 1000.0, 2000.0, 4000.0)
CLICKS = 3
DRAWN = ("lasso", "box")
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "process": time.process_time}


@dataclass(frozen=True, kw_only=True)
class Job:
    """A target, what is drawn of it, and the budgets to play it under."""

    case: EvalCase
    target: Target
    drawn: dict[str, Prompt]
    budgets_ms: list[float]
    clock: Callable[[], float]


def play(session: Session, job: Job) -> list[dict[str, Any]]:
    """Play one target under each budget; one row for each prompt."""
    rows: list[dict[str, Any]] = []
    base = session.policy
    for budget_ms in job.budgets_ms:
        # What set_budget does, with a clock of our own.
        session.policy = policy_within(base, session.predictor, budget_ms, clock=job.clock)
        prompts: list[Prompt | None] = [None] * CLICKS
        rows += _play_prompts(session, job, prompts, "click")
        for kind in DRAWN:
            rows += _play_prompts(session, job, [job.drawn[kind]], kind)
        session.policy = base
    return rows


def _play_prompts(
    session: Session, job: Job, prompts: list[Prompt | None], kind: str
) -> list[dict[str, Any]]:
    """Give prompts to an empty session; None stands for the next click."""
    show(session, job.case)
    session.embeddings.clear()
    hand, policy = Hand(job.case, job.target), session.policy
    rows: list[dict[str, Any]] = []
    for number, given in enumerate(prompts, start=1):
        prompt = given
        if prompt is None:
            last = session.prediction
            prompt = hand.point() if last is None else hand.correction(last)
        if prompt is None:
            break
        started = job.clock()
        answer = session.add(prompt)
        ms = (job.clock() - started) * 1e3
        mask = BoxedMask.of(job.target.truth.shape, answer.region, answer.region_mask)
        one_look = policy.click_ms + policy.encode_ms
        rows.append(
            {
                "case": job.case.name,
                "structure": job.case.structure(job.target.label),
                "budget_ms": policy.budget_ms,
                "prompt": f"{kind} {number}" if kind == "click" else kind,
                "ms": round(ms, 1),
                "one_look_ms": round(one_look, 1),
                "late": round(max(0.0, ms / max(policy.budget_ms, one_look) - 1), 3)
                if policy.budget_ms
                else None,
                "dice": round(boxed_dice(mask, job.target.truth), 4),
                "stopped": any("budget" in text for text in answer.warnings),
            }
        )
    return rows


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return times and Dice for each budget and prompt."""
    result: dict[str, Any] = {}
    for budget_ms in sorted({row["budget_ms"] for row in rows}):
        of_budget = [row for row in rows if row["budget_ms"] == budget_ms]
        result[f"{budget_ms:.0f} ms" if budget_ms else "no budget"] = {
            prompt: _summary([row for row in of_budget if row["prompt"] == prompt])
            for prompt in dict.fromkeys(row["prompt"] for row in of_budget)
        } | {"all": _summary(of_budget)}
    return result


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    ms = np.array([row["ms"] for row in rows])
    found = {
        "prompts": len(rows),
        "ms_median": round(float(np.median(ms))),
        "ms_p95": round(float(np.percentile(ms, 95))),
        "ms_worst": round(float(ms.max())),
        "dice": round(float(np.mean([row["dice"] for row in rows])), 4),
        "stopped": sum(row["stopped"] for row in rows),
    }
    late = np.array([row["late"] for row in rows if row["late"] is not None])
    if len(late):
        found |= {
            "kept_share": round(float((late == 0).mean()), 3),
            "kept_within_tenth_share": round(float((late <= 0.1).mean()), 3),
            "late_worst": round(float(late.max()), 3),
        }
    return found


def main() -> int:
    """Measure; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--budgets", type=float, nargs="+", default=list(BUDGETS_MS))
    parser.add_argument("--limit-targets", type=int, default=12)
    parser.add_argument("--drawn", type=Path, help="as prompt_kinds.py")
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS))
    add_options(parser)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    card = load_card(options.model).preprocessing
    side_mm = card.image_size * card.spacings_mm[-1]
    targets = large_targets(load_cases(options.pack), side_mm)[: options.limit_targets]
    drawn = drawn_prompts(targets, DRAWN, options.drawn)
    jobs = [
        Job(
            case=case,
            target=target,
            drawn=prompts,
            budgets_ms=options.budgets,
            clock=CLOCKS[options.clock],
        )
        for (case, target), prompts in zip(targets, drawn, strict=True)
    ]
    rows = play_jobs(play, jobs, Machine.of(options))
    failed = [row for row in rows if "error" in row]
    rows = [row for row in rows if "error" not in row]
    result = {
        **record("budget.py", options),
        "clock": options.clock,
        "load_average_before": round(load, 2),
        "targets": len(jobs),
        "failed": failed,
        "budgets": summarise(rows),
        "rows": rows,
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for budget, found in result["budgets"].items():
        print(f"{budget:12s} {found['all']}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
