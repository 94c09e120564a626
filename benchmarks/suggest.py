"""What is found without a user: ``python benchmarks/suggest.py DEV_DIR --cases A B --output X``.

Runs `suggest_objects` on development cases and asks which labelled structures the best 50
suggestions hold (IoU above 0.5). The record is written after each case. Labels are not all there is
in a scan, so suggestions beyond them are not counted as wrong; how many suggestions hit a labelled
structure is given. A structure of fewer than 100 voxels is left out. The truth is used for counting
only.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastsam3d.eval.provenance import cpu_name, git_commit
from fastsam3d.io import read_mask, read_volume
from fastsam3d.session import Session, SuggestPolicy, suggest_objects

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fastsam3d.session import Suggestion

MIN_VOXELS = 100
FOUND_IOU = 0.5


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


def main() -> int:
    """Measure; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of cases")
    parser.add_argument("--cases", nargs="+", required=True)
    parser.add_argument("--model", default="hr_s")
    parser.add_argument("--points", type=int, default=SuggestPolicy().max_points)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    predictor = Session.from_pretrained(options.model, device="cpu").predictor
    policy = SuggestPolicy(max_points=options.points)
    figures: dict[str, object] = {
        "provenance": {
            "command": shlex.join(["python", "benchmarks/suggest.py", *sys.argv[1:]]),
            "commit": git_commit(Path(__file__).parent),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": f"{cpu_name()}, one thread, busy machine: seconds are upper bounds",
            "python": platform.python_version(),
        },
        "policy": asdict(policy),
    }
    rows: list[dict[str, object]] = []
    for case in options.cases:
        volume = read_volume(options.data / case / "image.nii.gz")
        labels = read_mask(options.data / case / "label.nii.gz").array
        started = time.perf_counter()
        found = suggest_objects(predictor, volume, policy)
        seconds = time.perf_counter() - started
        best, num_hits = best_ious(found, labels)
        rows.append(
            {
                "case": case,
                "structures": len(best),
                "found": sum(iou > FOUND_IOU for iou in best.values()),
                "suggestions": len(found),
                "suggestions_on_structures": num_hits,
                "seconds": round(seconds, 1),
                "best_iou": {str(n): round(iou, 3) for n, iou in best.items()},
            }
        )
        sys.stderr.write(f"{rows[-1]}\n")
        figures["rows"] = rows
        options.output.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
