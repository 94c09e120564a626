"""Draw the targets on which an evaluation ended worst.

python benchmarks/worst_overlays.py EVALUATION_DIR docs/figures/worst_overlays.png

EVALUATION_DIR is what `fastsam3d evaluate` wrote. At most two targets of one structure are drawn,
so that a structure with many cases does not hide the others.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from fastsam3d.eval.report import last_rows
from fastsam3d.eval.report_plots import draw_montage, to_png
from fastsam3d.eval.results import ResultRow, read_rows
from fastsam3d.eval.snapshot import load_snapshot, snapshot_name


def pick_worst(rows: list[ResultRow], count: int) -> list[ResultRow]:
    """Return the last rows of the worst targets, worst first."""
    taken: Counter[str] = Counter()
    picked: list[ResultRow] = []
    for row in sorted(last_rows(rows), key=lambda row: row.dice):
        if taken[row.structure] < 2 and len(picked) < count:
            taken[row.structure] += 1
            picked.append(row)
    return picked


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--count", type=int, default=10)
    words = parser.parse_args()
    worst = pick_worst(read_rows(words.evaluation / "results.jsonl"), words.count)
    folder = words.evaluation / "snapshots"
    overlays = [
        (
            f"{row.structure} ({row.case}), Dice {row.dice:.2f}",
            load_snapshot(folder / snapshot_name(row.target)),
        )
        for row in worst
    ]
    rows = [("Worst", overlays[n : n + 2]) for n in range(0, len(overlays), 2)]
    figure = draw_montage(rows)
    words.output.write_bytes(to_png(figure))


if __name__ == "__main__":
    main()
