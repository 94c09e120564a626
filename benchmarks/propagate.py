"""What a mask of the time point before is worth: ``python benchmarks/propagate.py DEV_DIR``.

ACDC development cases come as two frames of one heart, at the end of diastole (ED) and of systole
(ES). Each structure is segmented in ED by simulated clicks. Then in ES, on the same grid: that mask
copied; refined from the mask and the point in its middle; the same corrected by one click; that
point alone; and, for comparison, one and three clicks made in ES itself by a user who sees it
(simulated clicks know the truth, propagated prompts do not). Dice in ES. Spacing of these cases is
an assumption of their source.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastsam3d.eval.provenance import cpu_name, git_commit
from fastsam3d.io import read_mask, read_volume
from fastsam3d.prompts import PromptSet
from fastsam3d.prompts.simulate import next_click
from fastsam3d.session import Session
from fastsam3d.session.object_mask import ObjectMask
from fastsam3d.session.propagate import prior_prompts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastsam3d.volume import Volume

WAYS = (
    "copy",
    "mask_and_point",
    "mask_and_point_then_one_click",
    "point",
    "one_click",
    "three_clicks",
)


def _dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def _clicked(
    session: Session, volume: Volume, truth: NDArray[np.bool_], num_clicks: int
) -> NDArray[np.bool_]:
    """Return the mask after simulated clicks."""
    session.set_volume(volume)
    mask = np.zeros(volume.shape, np.bool_)
    for _ in range(num_clicks):
        click = next_click(mask, truth, volume.geometry.spacing)
        if click is not None:
            mask = session.add_point(click).mask.array > 0
    return mask


def _answers(
    session: Session, before: NDArray[np.bool_], volume: Volume, truth: NDArray[np.bool_]
) -> dict[str, NDArray[np.bool_]]:
    """Return the mask in ES by each way, given that of ED."""
    mask, point = prior_prompts(ObjectMask.cropped(volume.geometry.region, before), volume.geometry)
    session.set_volume(volume)
    refined = corrected = session.predict(PromptSet((mask, point))).mask.array > 0
    click = next_click(refined, truth, volume.geometry.spacing)
    if click is not None:
        corrected = session.add_point(click).mask.array > 0
    return {
        "copy": before,
        "mask_and_point": refined,
        "mask_and_point_then_one_click": corrected,
        "point": session.predict(PromptSet((point,))).mask.array > 0,
        "one_click": _clicked(session, volume, truth, 1),
        "three_clicks": _clicked(session, volume, truth, 3),
    }


def main() -> int:
    """Measure; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of cases such as acdc__p001f01")
    parser.add_argument("--model", default="hr_s")
    parser.add_argument("--clicks", type=int, default=3, help="in ED")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    session = Session.from_pretrained(options.model, device="cpu")
    rows: list[dict[str, object]] = []
    for ed in sorted(options.data.glob("acdc__*f01")):
        es = ed.with_name(ed.name.replace("f01", "f02"))
        volumes = [read_volume(folder / "image.nii.gz") for folder in (ed, es)]
        labels = [read_mask(folder / "label.nii.gz").array for folder in (ed, es)]
        for label in sorted(set(np.unique(labels[0]).tolist()) - {0}):
            before = _clicked(session, volumes[0], labels[0] == label, options.clicks)
            truth = labels[1] == label
            found = _answers(session, before, volumes[1], truth)
            rows.append(
                {
                    "case": ed.name,
                    "label": label,
                    "ed": _dice(before, labels[0] == label),
                    **{way: _dice(found[way], truth) for way in WAYS},
                }
            )
            sys.stderr.write(f"{rows[-1]}\n")
    figures = {
        "provenance": {
            "command": shlex.join(["python", "benchmarks/propagate.py", *sys.argv[1:]]),
            "commit": git_commit(Path(__file__).parent),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": cpu_name(),
            "python": platform.python_version(),
        },
        "mean_dice": {
            name: round(float(np.mean([float(str(row[name])) for row in rows])), 4)
            for name in ("ed", *WAYS)
        },
        "rows": rows,
    }
    options.output.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
