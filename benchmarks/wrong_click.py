"""What a wrong click costs and how it is repaired: ``python benchmarks/wrong_click.py --pack P``.

After three correct clicks the simulated user means the next correction but presses the wrong
button (a missed part is marked as background, or a leak as object). Measured: Dice before, after
the wrong click, after one undo (must be as before, bit by bit), and after the right click at the
same place instead of the undo, beside that of a user who never erred. Development cases.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from fastsam3d.eval.boxed import boxed_dice
from fastsam3d.eval.cases import load_cases
from fastsam3d.eval.protocol import InteractionProtocol
from fastsam3d.eval.provenance import cpu_name, git_commit
from fastsam3d.eval.runner import BoxedMask, click_in_box, play_clicks, protocol_clicker
from fastsam3d.prompts import Point
from fastsam3d.segmenter import Prediction
from fastsam3d.session import Session

CLICKS_BEFORE = 3


def _dice(answer: Prediction, truth: BoxedMask) -> float:
    return boxed_dice(BoxedMask.of(truth.shape, answer.region, answer.region_mask), truth)


def main() -> int:
    """Measure; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--model", default="hr_s")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit-targets", type=int, default=2, help="per case")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    protocol = InteractionProtocol(num_clicks=CLICKS_BEFORE, max_targets=options.limit_targets)
    session = Session.from_pretrained(options.model, device=options.device)
    rows: list[dict[str, object]] = []
    for case in load_cases(options.pack):
        session.set_volume(case.volume)
        for target in protocol.targets(case):
            session.reset()
            clicker = protocol_clicker(protocol, case, target, 0)
            *_, before = play_clicks(session, target.truth, clicker, num_clicks=CLICKS_BEFORE)
            meant = click_in_box(before.mask, target.truth, clicker)
            if meant is None:
                continue
            wrong = Point.voxel(meant.position, positive=not meant.positive)
            kept = session.prompts
            after_wrong = _dice(session.add_point(wrong), target.truth)
            repaired = _dice(session.add_point(meant), target.truth)
            session.undo()
            undone = session.undo()
            if undone is None or session.prompts != kept:
                raise SystemExit("Undo did not bring the prompts back.")
            rows.append(
                {
                    "case": case.name,
                    "source": case.source,
                    "structure": case.label_names.get(target.label, str(target.label)),
                    "meant_positive": meant.positive,
                    "before": boxed_dice(before.mask, target.truth),
                    "after_wrong": after_wrong,
                    "after_undo": _dice(undone, target.truth),
                    "after_opposite": repaired,
                    "never_wrong": _dice(session.add_point(meant), target.truth),
                }
            )
            sys.stderr.write(f"{rows[-1]}\n")
    figures = {
        key: round(float(np.mean([row[key] for row in rows])), 4)
        for key in ("before", "after_wrong", "after_undo", "after_opposite", "never_wrong")
    }
    result = {
        "command": shlex.join(["python", "benchmarks/wrong_click.py", *sys.argv[1:]]),
        "commit": git_commit(Path(__file__).parent),
        "date": datetime.now(UTC).date().isoformat(),
        "device": cpu_name() if options.device == "cpu" else options.device,
        "python": platform.python_version(),
        "targets": len(rows),
        "mean_dice": figures,
        "rows": rows,
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(len(rows), figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
