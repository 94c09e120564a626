"""Output folders of evaluations that were never run."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fastsam3d.eval.evaluation import EvaluationOptions
from fastsam3d.eval.groups import SeenGroups
from fastsam3d.eval.protocol import PROTOCOLS, InteractionProtocol
from fastsam3d.eval.results import ResultRow, append_rows
from fastsam3d.eval.snapshot import make_snapshot, save_snapshot, snapshot_name
from fastsam3d.eval.summary import summarise, summary_to_json
from fastsam3d.volume import Geometry, Volume


def write_output(
    folder: Path,
    rows: Sequence[ResultRow],
    *,
    model: str = "hr_s",
    protocol: InteractionProtocol | None = None,
    cases_hash: str = "abc",
    groups: SeenGroups | None = None,
    **options: Any,
) -> Path:
    """Write what `fastsam3d evaluate` writes, snapshots apart."""
    folder.mkdir(parents=True)
    chosen = protocol or InteractionProtocol(num_clicks=max(row.round for row in rows))
    settings = EvaluationOptions(cases=Path("dev"), model=model, protocol=chosen, **options)
    run = {
        "format": 1,
        "protocol": {"name": chosen.name, **asdict(PROTOCOLS[chosen.name])},
        "options": settings.to_json(),
        "hashes": {"cases": cases_hash, "weights": None},
        "starts": [{"command": "fastsam3d evaluate dev", "commit": "c0ffee", "device": "a <CPU>"}],
    }
    (folder / "run.json").write_text(json.dumps(run))
    content = summary_to_json(summarise(rows, groups=groups))
    (folder / "summary.json").write_text(json.dumps(content))
    append_rows(folder / "results.jsonl", rows)
    return folder


def save_toy_snapshot(folder: Path, row: ResultRow) -> None:
    """Keep a picture of a target: two overlapping boxes in noise."""
    array = np.random.default_rng(row.label).integers(0, 99, (20, 18, 12)).astype(np.int16)
    truth, mask = np.zeros(array.shape, bool), np.zeros(array.shape, bool)
    truth[5:12, 5:12, 3:9] = True
    mask[7:14, 5:12, 3:9] = True
    snapshot = make_snapshot(Volume(array, Geometry(array.shape, np.eye(4))), truth, mask)
    save_snapshot(folder / "snapshots" / snapshot_name(row.target), snapshot)
