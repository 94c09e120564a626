r"""Does uncertainty find mistakes, and do candidates hold what was meant? On development cases.

    python benchmarks/uncertainty.py --data FOLDER --cases a,b,c --output uncertainty.json

FOLDER holds one folder a case with image.nii.gz and label.nii.gz. A simulated user clicks as in the
protocol "clicks"; after the first and the last click the session is asked for candidates and for
its uncertainty. The truth places clicks and scores, nothing else reads it. Measured per target:

- AUROC of the entropy for "this voxel of the mask is wrong", over voxels within 5 mm of the mask's
  own surface; beside it that of the model's probability without moved prompts, and that of the
  distance to the surface alone, which needs no model;
- stability and predicted quality beside the Dice coefficient;
- Dice after a click at the suggested point (its sign from the truth, as a user would know), beside
  that after a click in the middle of the largest mistake;
- Dice of the answer, of the best candidate and of the one with the best predicted quality.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, stats

from fastsam3d.eval.boxed import BoxedMask, boxed_dice
from fastsam3d.eval.cases import read_case
from fastsam3d.eval.protocol import InteractionProtocol
from fastsam3d.eval.provenance import cpu_name, git_commit
from fastsam3d.eval.runner import click_in_box, play_clicks, protocol_clicker
from fastsam3d.prompts import Point
from fastsam3d.segmenter import Prediction
from fastsam3d.session import Session
from fastsam3d.session.uncertainty import UncertaintyMap
from fastsam3d.volume import Region

BAND_MM = 5.0


def auroc(score: NDArray[Any], is_wrong: NDArray[np.bool_]) -> float | None:
    """Return the area under the ROC curve; None where all or no voxels are wrong."""
    wrong, right = score[is_wrong], score[~is_wrong]
    if not len(wrong) or not len(right):
        return None
    statistic = stats.mannwhitneyu(wrong, right, method="asymptotic").statistic
    return float(statistic) / (len(wrong) * len(right))


def _entropy_in(found: UncertaintyMap, box: Region) -> NDArray[Any]:
    whole = np.zeros(box.shape, np.float32)
    shared = found.region.intersection(box)
    if not shared.is_empty:
        i, j, k = (-start for start in box.start)
        u, v, w = (-start for start in found.region.start)
        whole[shared.shift((i, j, k)).slices] = found.entropy[shared.shift((u, v, w)).slices]
    return whole


def rate_maps(
    answer: Prediction, truth: BoxedMask, maps: dict[str, UncertaintyMap]
) -> dict[str, float | None]:
    """Return the AUROC of each map, and of the distance to the surface, within `BAND_MM`."""
    geometry = answer.volume.geometry
    margin = [int(np.ceil(BAND_MM / side)) + 1 for side in geometry.spacing]
    low = [start - pad for start, pad in zip(answer.region.start, margin, strict=True)]
    high = [stop + pad for stop, pad in zip(answer.region.stop, margin, strict=True)]
    (i0, j0, k0), (i1, j1, k1) = low, high
    box = Region((i0, j0, k0), (i1, j1, k1)).clip(geometry.shape)
    mask = BoxedMask.of(truth.shape, answer.region, answer.region_mask).crop(box)
    inside = ndimage.distance_transform_edt(mask, sampling=geometry.spacing)
    outside = ndimage.distance_transform_edt(~mask, sampling=geometry.spacing)
    distance = np.maximum(inside, outside)
    band = distance <= BAND_MM
    is_wrong = (mask != truth.crop(box))[band]
    rated = {name: auroc(_entropy_in(found, box)[band], is_wrong) for name, found in maps.items()}
    return rated | {"distance": auroc(-distance[band], is_wrong)}


def dice_of(answer: Prediction, truth: BoxedMask) -> float:
    """Return the Dice coefficient of an answer."""
    return boxed_dice(BoxedMask.of(truth.shape, answer.region, answer.region_mask), truth)


def ask(session: Session, truth: BoxedMask, clicker: Any, options: argparse.Namespace) -> Any:
    """Ask a session about its latest answer; its prompts are as before when this returns."""
    answer = session.prediction
    if answer is None or answer.region.is_empty:
        return None
    started = time.perf_counter()
    candidates = session.candidates()
    candidates_s = time.perf_counter() - started
    started = time.perf_counter()
    moved = session.uncertainty(samples=options.samples, jitter_mm=options.jitter_mm)
    uncertainty_s = time.perf_counter() - started
    still = session.uncertainty(samples=1)
    before = BoxedMask.of(truth.shape, answer.region, answer.region_mask)
    row: dict[str, Any] = {
        "dice": dice_of(answer, truth),
        "quality": answer.predicted_quality,
        "stability": moved.stability,
        "auroc": rate_maps(answer, truth, {"jitter": moved, "single": still}),
        "candidates": [
            {
                "kind": one.kind,
                "quality": one.quality,
                "dice": boxed_dice(
                    BoxedMask.of(truth.shape, one.mask.region, one.mask.array), truth
                ),
            }
            for one in candidates
        ],
        "candidates_s": candidates_s,
        "uncertainty_s": uncertainty_s,
    }
    suggested, largest = moved.suggest_point(), click_in_box(before, truth, clicker)
    if suggested is not None and largest is not None:
        i, j, k = (int(value) for value in suggested.position)
        at = Region((i, j, k), (i + 1, j + 1, k + 1))
        is_object, was_object = bool(truth.crop(at)[0, 0, 0]), bool(before.crop(at)[0, 0, 0])
        row["suggested_was_wrong"] = is_object != was_object
        for name, click in (
            ("suggested", Point.voxel((i, j, k), positive=is_object)),
            ("largest_mistake", largest),
        ):
            row[f"dice_after_{name}"] = dice_of(session.add_point(click), truth)
            session.undo()
    return row


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list) else value


def summary_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means over targets and correlations with Dice."""
    dice = [row["dice"] for row in rows]
    clicked = [row for row in rows if "dice_after_suggested" in row]
    best = [max(one["dice"] for one in row["candidates"]) for row in rows]
    found: dict[str, Any] = {
        "targets": len(rows),
        "dice": float(np.mean(dice)),
        "dice_best_candidate": float(np.mean(best)),
        "candidates": float(np.mean([len(row["candidates"]) for row in rows])),
        "best_candidate_is": {
            kind: sum(max(r["candidates"], key=lambda c: c["dice"])["kind"] == kind for r in rows)
            for kind in ("answer", "part", "whole")
        },
        "best_quality_is_the_answer": sum(r["candidates"][0]["kind"] == "answer" for r in rows),
        "spearman_with_dice": {
            name: float(stats.spearmanr(dice, [row[name] for row in rows]).statistic)
            for name in ("stability", "quality")
        },
        "suggested_was_wrong": float(np.mean([row["suggested_was_wrong"] for row in clicked])),
        "median_candidates_s": float(np.median([row["candidates_s"] for row in rows])),
        "median_uncertainty_s": float(np.median([row["uncertainty_s"] for row in rows])),
    }
    for name in ("dice", "dice_after_suggested", "dice_after_largest_mistake"):
        found.setdefault("next_click", {})[name] = float(np.mean([row[name] for row in clicked]))
    for name in ("jitter", "single", "distance"):
        rated = [row["auroc"][name] for row in rows if row["auroc"][name] is not None]
        found.setdefault("mean_auroc", {})[name] = float(np.mean(rated))
    return found


def main() -> int:
    """Measure; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cases", required=True, help="names, separated by commas")
    parser.add_argument("--model", default="hr_s")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--jitter-mm", type=float, default=2.0)
    parser.add_argument("--clicks", type=int, default=3)
    parser.add_argument("--limit-targets", type=int, default=2, help="per case")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    commit = git_commit(Path(__file__).parent)
    protocol = InteractionProtocol(num_clicks=options.clicks, max_targets=options.limit_targets)
    session = Session.from_pretrained(options.model, device=options.device)
    rows: list[dict[str, Any]] = []
    for name in options.cases.split(","):
        folder = options.data / name
        case = read_case(folder / "image.nii.gz", folder / "label.nii.gz", name)
        session.set_volume(case.volume)
        for target in protocol.targets(case):
            session.reset()
            clicker = protocol_clicker(protocol, case, target, 0)
            played = play_clicks(session, target.truth, clicker, num_clicks=options.clicks)
            for state in played:
                if state.number not in {1, options.clicks} or state.click is None:
                    continue
                row = ask(session, target.truth, clicker, options)
                if row is not None:
                    rows.append({"case": name, "label": target.label, "clicks": state.number} | row)
                    sys.stderr.write(f"{_rounded(rows[-1])}\n")
    result = {
        "command": shlex.join(["python", "benchmarks/uncertainty.py", *sys.argv[1:]]),
        "commit": commit,
        "date": datetime.now(UTC).date().isoformat(),
        "device": cpu_name() if options.device == "cpu" else options.device,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "summary": {
            f"after {count} clicks": summary_of([row for row in rows if row["clicks"] == count])
            for count in sorted({row["clicks"] for row in rows})
        },
        "rows": rows,
    }
    options.output.write_text(json.dumps(_rounded(result), indent=1) + "\n", encoding="utf-8")
    print(json.dumps(_rounded(result["summary"]), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
