"""From a CT file to a saved mask: this package beside the published SAM-Med3D inference path.

    python benchmarks/volume_cost.py compare --official SAM-Med3D --official-python OTHER/bin/python
    python benchmarks/volume_cost.py plot

`compare` writes a CT of 512 x 512 x 600 and a label map to a scratch folder and runs both in
processes of their own, in turn. The published path is `validate_paired_img_gt` of a checkout of
uni-medical/SAM-Med3D, unchanged, in an interpreter with torch, SimpleITK, edt and torchio 0.20
(later ones lack a method that it calls). Its weights are random, which does not change its cost. It
wants a label map to choose its crop by and to click from; reading and resampling that are part of
its path. Both are compiled to bytecode before, so that none of it is done within the time.
`plot` draws `docs/figures/volume_cost.png` from `volume_cpu.json` (``fastsam3d bench --preset
volume``); a record of an earlier version, without sessions, gives three panels.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from fastsam3d.eval.bench_phantom import ball_centres, synthesise
from fastsam3d.eval.bench_volume import compile_package, run_measured
from fastsam3d.eval.provenance import cpu_name, git_commit
from fastsam3d.io import write_mask, write_volume

HERE = Path(__file__).parent
BLUE, RED = "#0072b2", "#d55e00"
# Key of the record and of the number in its rows, title, label of the axis, curves.
PANELS = (
    (
        "sizes",
        "Size of the volume",
        "voxels",
        (
            ("first_cpu_ms", BLUE, "first click, encoding included"),
            ("later_cpu_ms", RED, "one more click"),
        ),
    ),
    ("clicks", "Clicks", "the n-th click on one object", (("cpu_ms", RED, ""),)),
    (
        "objects",
        "Objects",
        "the n-th object of a study",
        (("first_cpu_ms", BLUE, "first click on it"), ("later_cpu_ms", RED, "second click")),
    ),
    (
        "sessions",
        "Sessions",
        "sessions that share the model, in turn",
        (
            ("first_cpu_ms", BLUE, "first click of each"),
            ("later_cpu_ms", RED, "one more click of one"),
        ),
    ),
)
SHAPE = (512, 512, 600)
# Run in the other interpreter, inside the checkout.
PUBLISHED = """
import functools, importlib.util, sys, types
checkout, image, label, output, threads = sys.argv[1:]
sys.path.insert(0, checkout)
# Its __init__ imports the 2-D model's needs, which the 3-D model does without.
package = types.ModuleType("segment_anything")
package.__path__ = [checkout + "/segment_anything"]
sys.modules["segment_anything"] = package
import SimpleITK, torch
torch.set_num_threads(int(threads))
SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(int(threads))
from segment_anything.build_sam3D import sam_model_registry3D
from utils.infer_utils import validate_paired_img_gt
torch.manual_seed(0)
model = sam_model_registry3D["vit_b_ori"](checkpoint=None).eval()
model.mask_decoder.forward = functools.partial(model.mask_decoder.forward, multimask_output=False)
validate_paired_img_gt(model, image, label, output, num_clicks=1)
"""


def compare(options: argparse.Namespace) -> None:
    """Run both paths in turn and write every time."""
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="fastsam3d-bench-") as scratch:
        folder = Path(scratch)
        image, label, mask = (folder / name for name in ("ct.nii.gz", "label.nii.gz", "m.nii.gz"))
        volume = synthesise(SHAPE)
        write_volume(volume, image)
        i, j, k = ball_centres(SHAPE, 1)[0]
        truth = np.zeros(SHAPE, np.uint8, order="F")
        truth[i - 12 : i + 13, j - 12 : j + 13, k - 10 : k + 11] = 1
        write_mask(volume.new_mask(truth), label)
        num_bytes = volume.array.nbytes
        del volume, truth
        commands = {
            f"fastsam3d segment --model {model}": [
                *(sys.executable, "-m", "fastsam3d", "segment", str(image), "-o", str(mask)),
                *("--point", f"{i},{j},{k}", "--force", "--device", "cpu", "--model", model),
            ]
            for model in options.model
        }
        compile_package()
        if options.official is not None:
            compile_package(options.official)
            commands["published SAM-Med3D"] = [
                *(options.official_python, "-c", PUBLISHED, str(options.official.resolve())),
                *(str(image), str(label), str(folder / "out" / "p.nii.gz"), str(options.threads)),
            ]
        samples: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
        for number in range(options.rounds):
            for name, command in commands.items():
                samples[name].append(run_measured(command, options.threads))
                print(number, name, samples[name][-1], flush=True)
    record = {
        "command": " ".join(sys.argv),
        "commit": git_commit(HERE),
        "official_commit": options.official and git_commit(options.official),
        "device": cpu_name(),
        "threads": options.threads,
        "python": platform.python_version(),
        "load_average_before": load_before,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "shape": SHAPE,
        "volume_bytes": num_bytes,
        "paths": [_row(name, found, num_bytes) for name, found in samples.items()],
    }
    slowest = record["paths"][-1]
    for row in record["paths"]:
        row["times_as_fast"] = {q: slowest[q] / row[q] for q in ("wall_s", "cpu_s")}
    options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _row(name: str, samples: list[dict[str, float]], num_bytes: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        quantity: median(sample[quantity] for sample in samples)
        for quantity in ("wall_s", "cpu_s", "peak_bytes")
    }
    over = found["peak_bytes"] / num_bytes
    return {"name": name, **found, "peak_over_volume": over, "samples": samples}


def plot(record_path: Path, output: Path) -> None:
    """Draw click time against volume size, and number of clicks, objects and sessions.

    Records of before there were sessions are drawn without them.
    """
    import matplotlib as mpl  # noqa: PLC0415 - only here

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    record = read_record(record_path)
    panels = PANELS if "sessions" in record else PANELS[:3]
    grid, size = ((2, 2), (9, 6.4)) if len(panels) == 4 else ((1, 3), (11, 3.4))
    figure, axes = plt.subplots(*grid, figsize=size, layout="constrained")
    for ax, (name, title, xlabel, curves) in zip(axes.flat, panels, strict=True):
        rows = record[name]
        is_counted = name != "sizes"
        x = [row[name] for row in rows] if is_counted else list(range(len(rows)))
        for quantity, colour, label in curves:
            y = [row[quantity] for row in rows]
            ax.plot(x, y, marker="o", markersize=4, color=colour, label=label)
        ax.set(xlabel=xlabel, ylabel="ms of processor time", title=title)
        ax.set_ylim(bottom=0)
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
        if name == "sessions":
            ax.set_xscale("log", base=2)
            ax.set_xticks(x, x)
            differing, answers = (
                sum(row[key] for row in rows) for key in ("mismatches", "answers")
            )
            note = f"{differing} of {answers} answers differ\nfrom the same session alone"
            ax.text(0.02, 0.42, note, transform=ax.transAxes, fontsize=9)
        elif is_counted:
            ax.set_xticks(range(1, len(rows) + 1, max(1, len(rows) // 8)))
        else:
            ax.set_xticks(x, [shape_label(row["shape"]) for row in rows], fontsize=8)
        if len(curves) > 1:
            ax.legend(frameon=False, fontsize=9, loc="center right")
    threads = "1 thread" if record["threads"] == 1 else f"{record['threads']} threads"
    figure.suptitle(f"{record['config']['model']}, {threads}, {record['device']}", fontsize=10)
    figure.savefig(output, dpi=130)


def read_record(path: Path) -> dict[str, Any]:
    """Return what ``fastsam3d bench --preset volume`` wrote; end the program if it is not that."""
    record = json.loads(path.read_text(encoding="utf-8"))
    missing = [key for key in ("sizes", "clicks", "objects") if key not in record]
    if missing:
        raise SystemExit(
            f"{path} has no {', '.join(missing)}; give a file that `fastsam3d bench --preset "
            "volume --output` wrote."
        )
    return record


def shape_label(shape: list[int]) -> str:
    """Return a shape in few letters."""
    a, b, c = shape
    if a == b == c:
        return f"{a}³"
    return f"{a}²\nx {c}" if a == b else f"{a} x {b}\nx {c}"


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="what", required=True)
    comparing = commands.add_parser("compare")
    comparing.add_argument("--official", type=Path, help="checkout of uni-medical/SAM-Med3D")
    comparing.add_argument("--official-python", default=sys.executable)
    comparing.add_argument("--model", action="append", help="by default hr_s")
    comparing.add_argument("--threads", type=int, default=1)
    comparing.add_argument("--rounds", type=int, default=3)
    comparing.add_argument("--output", type=Path, default=HERE / "volume_published.json")
    plotting = commands.add_parser("plot")
    plotting.add_argument("--record", type=Path, default=HERE / "volume_cpu.json")
    plotting.add_argument(
        "--output", type=Path, default=HERE.parent / "docs" / "figures" / "volume_cost.png"
    )
    options = parser.parse_args()
    if options.what == "plot":
        plot(options.record, options.output)
        return
    options.model = options.model or ["hr_s"]
    compare(options)


if __name__ == "__main__":
    main()
