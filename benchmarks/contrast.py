r"""Dice of development targets by contrast to noise: is what is missed too faint to be seen?

    python benchmarks/contrast.py dev_pack.npz dev_hr_s.json --output benchmarks/dev_contrast.json

Contrast to noise of a target: the difference of its median and that of the tissue within 5 mm
around it, over the standard deviation within it (1.4826 times the median absolute deviation,
which a few foreign voxels do not move). CT between -1,000 and 1,000 HU. Both come from the truth,
so the figure explains results and never makes one.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.stats import spearmanr

from fastsam3d.eval.cases import load_cases
from fastsam3d.eval.protocol import InteractionProtocol

SHELL_MM = 5.0
EDGES = (0.5, 1.0, 2.0, 4.0)


def main() -> int:
    """Relate Dice to contrast; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pack", type=Path, help="development cases, by fastsam3d.eval.cases")
    parser.add_argument("results", type=Path, help="JSON of results-table --export")
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    results = json.loads(options.results.read_text("utf-8"))["targets"]
    dice = {(row["case"], row["label"], row["component"]): row["dice"] for row in results}
    protocol = InteractionProtocol()
    rows: list[dict[str, Any]] = []
    for case in load_cases(options.pack):
        for target in protocol.targets(case):
            curve = dice.get((case.name, target.label, target.component))
            if curve is None:
                continue
            spacing = [float(mm) for mm in case.volume.geometry.spacing]
            truth = target.truth.whole()
            ratio = contrast_to_noise(np.asarray(case.volume.array), truth, spacing)
            rows.append({"source": case.source, "ratio": ratio, "dice": curve})
    bins: list[dict[str, Any]] = []
    for low, high in zip((0.0, *EDGES), (*EDGES, np.inf), strict=True):
        mine = [row["dice"] for row in rows if low <= row["ratio"] < high]
        if mine:
            mean = np.mean(mine, 0)
            bins.append(
                {
                    "contrast_to_noise": [low, None if np.isinf(high) else high],
                    "targets": len(mine),
                    "dice_1": round(float(mean[0]), 4),
                    "dice_5": round(float(mean[4]), 4),
                }
            )
    ratios = [row["ratio"] for row in rows]
    found = {
        "command": " ".join(["python", "benchmarks/contrast.py", *sys.argv[1:]]),
        "commit": options.commit,
        "date": datetime.now(UTC).date().isoformat(),
        "device": "cpu",
        "targets": len(rows),
        "bins": bins,
        "rank_correlation": {
            str(n): round(float(spearmanr(ratios, [row["dice"][n - 1] for row in rows])[0]), 3)
            for n in (1, 5)
        },
    }
    print(json.dumps(found, indent=1))
    if options.output is not None:
        options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def contrast_to_noise(
    array: NDArray[Any], truth: NDArray[np.bool_], spacing_mm: list[float]
) -> float:
    """Return the contrast to noise of a target (I, J, K) and the shell around it."""
    at = np.argwhere(truth)
    reach = np.ceil(SHELL_MM / np.array(spacing_mm)).astype(int) + 1
    first = np.maximum(at.min(0) - reach, 0)
    box = tuple(slice(a, b) for a, b in zip(first, at.max(0) + reach + 1, strict=True))
    inside, values = truth[box], np.clip(array[box].astype(np.float64), -1000, None)
    if array.min() < -500:
        values = np.minimum(values, 1000)
    away = ndimage.distance_transform_edt(~inside, sampling=spacing_mm)
    shell = values[(away > 0) & (away <= SHELL_MM)]
    own = values[inside]
    middle = np.median(own)
    noise = 1.4826 * np.median(np.abs(own - middle))
    return float(abs(middle - np.median(shell)) / max(noise, 1e-6))


if __name__ == "__main__":
    sys.exit(main())
