r"""Compare ways of choosing the ROI on development cases: spacings, growth, refining.

    python benchmarks/session_policies.py --pack dev_pack.npz --device cuda --workers 32 \
        --output benchmarks/session_policies.json

Every policy plays the same targets with the same simulated user; the table shows macro Dice after
each click. Needs torch, numpy and scipy. These figures choose defaults, so the development cases
are no independent test of that choice; the output says so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

PolicySpec = dict[str, Any]
FIXED_MM = (0.5, 0.7, 0.9, 1.1, 1.4, 1.8, 2.4, 3.2)
POLICIES: dict[str, PolicySpec] = {
    "default": {},
    **{f"fixed {mm} mm": {"spacings_mm": (mm,), "max_growths": 0} for mm in FIXED_MM},
    "growth once, 5 % of a face": {"max_growths": 1, "face_contact": 0.05},
    "by quality of 0.9, 1.4 mm": {"spacings_mm": (0.9, 1.4)},
    "by quality of 0.7, 1.1, 1.8 mm": {"spacings_mm": (0.7, 1.1, 1.8)},
    "finer than 0.5 voxel": {"finest_voxel": 0.3},
    "0.8 mm, finer than 0.5 voxel": {"finest_voxel": 0.3, "spacings_mm": (0.8,)},
    "refine later clicks, small": {
        "max_later_refinements": 1,
        "smallest_extent": 0.2,
        "target_extent": 0.4,
        "largest_extent": 0.99,
    },
    "refine later clicks, medium": {
        "max_later_refinements": 1,
        "smallest_extent": 0.3,
        "target_extent": 0.5,
        "largest_extent": 0.99,
    },
    "refine every click": {
        "max_refinements": 1,
        "max_later_refinements": 1,
        "smallest_extent": 0.3,
        "target_extent": 0.5,
        "largest_extent": 0.99,
    },
    "mean of 1.1 mm and 1.3 times finer and coarser": {"look_factors": (1.3, 1 / 1.3)},
    "best of three candidates at the first click": {"first_click_candidates": True},
}
BLIND = "default, image hidden"


def play(options: argparse.Namespace) -> None:
    """Play the targets of one shard under every policy and append rows to `options.rows`."""
    import torch  # noqa: PLC0415 - each worker chooses its threads first

    from fastsam3d.eval.baselines import BlindModel  # noqa: PLC0415
    from fastsam3d.eval.boxed import boxed_dice  # noqa: PLC0415
    from fastsam3d.eval.cases import load_cases  # noqa: PLC0415
    from fastsam3d.eval.protocol import InteractionProtocol  # noqa: PLC0415
    from fastsam3d.eval.runner import play_clicks, protocol_clicker  # noqa: PLC0415
    from fastsam3d.session import Session  # noqa: PLC0415
    from fastsam3d.session.predictor import Predictor  # noqa: PLC0415

    torch.set_num_threads(1)
    protocol = InteractionProtocol(num_clicks=options.clicks)
    jobs = [(c, t) for c in load_cases(options.pack) for t in protocol.targets(c)]
    base = Session.from_pretrained(options.model, device=options.device, mirrors=options.mirrors)
    seen, started = _with_engine(base.predictor, options.engine), time.monotonic()
    hidden = Predictor(
        BlindModel(seen.model), seen.preprocessing, device=seen.device, model_id="blind"
    )
    with options.rows.open("w", encoding="utf-8") as file:
        for name in options.policies:
            if time.monotonic() - started > options.seconds:
                return
            policy = replace(base.policy, **POLICIES.get(name, {}))
            session = Session(hidden if name == BLIND else seen, policy=policy)
            shown = None
            for case, target in jobs[options.shard :: options.workers]:
                if case is not shown:
                    session.set_volume(case.volume)
                    shown = case
                session.reset()
                clicker = protocol_clicker(protocol, case, target, 0)
                rounds = list(
                    play_clicks(session, target.truth, clicker, num_clicks=options.clicks)
                )
                row = {
                    "policy": name,
                    "source": case.source,
                    "structure": case.label_names.get(target.label, str(target.label)),
                    "case": case.name,
                    "dice": [round(boxed_dice(r.mask, target.truth), 4) for r in rounds],
                    "quality": [round(r.quality, 3) for r in rounds],
                    "spacing_mm": [round(r.spacing_mm, 3) for r in rounds],
                }
                file.write(json.dumps(row) + "\n")
                file.flush()


def _with_engine(seen: Any, engine: str) -> Any:
    """Return a predictor whose model runs in the fixed-shape engine, or the same for "torch"."""
    from fastsam3d.session.fixed_shape import (  # noqa: PLC0415 - each worker chooses its threads first
        FixedShapeConfig,
        FixedShapeEngine,
    )
    from fastsam3d.session.predictor import Predictor  # noqa: PLC0415

    if engine == "torch":
        return seen
    # Compiling takes every worker a minute; what is computed is the same without.
    config = FixedShapeConfig(
        is_compiled=engine == "cuda_graph",
        is_captured=engine.startswith("cuda_graph"),
    )
    model = FixedShapeEngine(seen.model, config)
    return Predictor(model, seen.preprocessing, device=seen.device, model_id=seen.model_id)


def gather(options: argparse.Namespace, given: list[str]) -> list[dict[str, Any]]:
    """Run all shards at once and return their rows."""
    num_gpus = 1
    if options.device == "cuda":
        import torch  # noqa: PLC0415

        num_gpus = torch.cuda.device_count()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{shard}.jsonl" for shard in range(options.workers)]
        workers = [
            subprocess.Popen(  # noqa: S603 - this script again
                [sys.executable, __file__, *given, "--shard", str(n), "--rows", str(file)],
                env=os.environ
                | {"CUDA_VISIBLE_DEVICES": str(n % num_gpus), "OMP_NUM_THREADS": "1"},
            )
            for n, file in enumerate(files)
        ]
        failed = [worker.args for worker in workers if worker.wait()]
        lines = [line for file in files if file.exists() for line in file.read_text().splitlines()]
    if failed:
        print(f"{len(failed)} workers failed", file=sys.stderr)
    return [json.loads(line) for line in lines]


def _device(name: str) -> str:
    if name != "cuda":
        return f"{name} ({platform.machine()})"
    import torch  # noqa: PLC0415

    return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"


def macro(rows: list[dict[str, Any]]) -> tuple[list[float], dict[str, list[float]]]:
    """Return mean Dice after each click: over targets, then structures, then sources."""
    found: defaultdict[str, defaultdict[str, list[list[float]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in rows:
        found[row["source"]][row["structure"]].append(row["dice"])
    sources = {
        source: np.mean([np.mean(curves, 0) for curves in structures.values()], 0)
        for source, structures in found.items()
    }
    mean = np.mean(list(sources.values()), 0)
    return mean.round(4).tolist(), {s: c.round(4).tolist() for s, c in sorted(sources.items())}


def main() -> int:
    """Run the comparison; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--model", default="hr_s")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--engine",
        choices=["torch", "bfloat16", "cuda_graph_plain", "cuda_graph"],
        default="torch",
        help="float32; bfloat16; that as CUDA graphs; that compiled",
    )
    parser.add_argument("--mirrors", type=int, default=1, help="mirror images to average over")
    parser.add_argument("--clicks", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1e9, help="start no policy after this")
    parser.add_argument("--policies", nargs="+", default=[*POLICIES, BLIND])
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--shard", type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.shard is not None:
        play(options)
        return 0
    rows = gather(options, sys.argv[1:])
    names = [name for name in options.policies if any(r["policy"] == name for r in rows)]
    result: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/session_policies.py", *sys.argv[1:]]),
        "commit": options.commit,
        "date": datetime.now(UTC).date().isoformat(),
        "device": _device(options.device),
        "model": options.model,
        "engine": options.engine,
        "note": "Chosen on these cases, hence no independent test of the choice.",
        "policies": {},
    }
    for name in names:
        mine = [row for row in rows if row["policy"] == name]
        mean, by_source = macro(mine)
        worse = [b < a - 0.01 for r in mine for a, b in zip(r["dice"], r["dice"][1:], strict=False)]
        result["policies"][name] = {
            "settings": POLICIES.get(name, {}),
            "targets": len(mine),
            "macro": mean,
            "by_source": by_source,
            "below_half": round(float(np.mean([r["dice"][-1] < 0.5 for r in mine])), 4),
            "worse_clicks": round(float(np.mean(worse)), 4),
        }
        print(f"{name:45s} {len(mine):4d} {mean} worse {np.mean(worse):.3f}")
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        details = options.output.with_suffix(".rows.jsonl")
        details.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
