"""What fine-tuning did to cases that it has not seen: Dice before and after, click by click."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from fastsam3d.errors import DatasetError
from fastsam3d.eval.bench import cpu_name, git_commit
from fastsam3d.eval.folders import CaseFile
from fastsam3d.eval.protocol import InteractionProtocol
from fastsam3d.eval.runner import Row, run
from fastsam3d.model.checkpoint import write_atomically
from fastsam3d.model.registry import load_card
from fastsam3d.session import Session

NUM_CLICKS = 5
SHOWN_CLICKS = (1, 3, 5)
PROTOCOL = InteractionProtocol(num_clicks=NUM_CLICKS)


def check_measurable(cases: Sequence[CaseFile]) -> None:
    """Read all held-out cases once, so that a bad one is told before training and not after.

    Raises:
        DatasetError: A case is inconsistent, or none has a structure large enough to be a target.
        VolumeReadError: A file is damaged.
    """
    counts = [len(PROTOCOL.targets(case.read())) for case in cases]
    if cases and not any(counts):
        msg = (
            f"None of the {len(cases)} held-out cases has a structure of {PROTOCOL.min_voxels} "
            "voxels or more; check the label maps or hold out other cases."
        )
        raise DatasetError(msg)


def measure(
    weights: str | Path,
    cases: Sequence[CaseFile],
    *,
    device: str = "auto",
    on_target: Callable[[list[Row]], None] | None = None,
) -> dict[str, Any]:
    """Segment held-out cases with simulated clicks at the centre of the largest error.

    Args:
        weights: Name or path of the model.
        cases: The cases; read one at a time.
        device: Where to compute.
        on_target: Called with the rows of each finished structure.

    Returns:
        JSON data: ``sha256`` of the weights, ``dice`` after click 1, 2, ... (mean over structures
        of the mean over cases), the same ``by_structure``, ``num_targets`` and all ``rows``.
    """
    session = Session.from_pretrained(weights, device=cast("Any", device))
    rows = run(session, (case.read() for case in cases), PROTOCOL, on_target=on_target)
    by_structure = {
        structure: _mean_dice([row for row in rows if row.structure == structure])
        for structure in sorted({row.structure for row in rows})
    }
    return {
        "sha256": load_card(weights).sha256,
        "dice": np.mean(list(by_structure.values()), axis=0).round(4).tolist(),
        "by_structure": {name: np.round(d, 4).tolist() for name, d in by_structure.items()},
        "num_targets": len(rows) // NUM_CLICKS,
        "rows": [asdict(row) for row in rows],
    }


def compare(
    before: str | Path,
    after: str | Path,
    cases: Sequence[CaseFile],
    path: Path,
    *,
    device: str = "auto",
    facts: dict[str, Any] | None = None,
    on_target: Callable[[list[Row]], None] | None = None,
) -> str:
    """Measure old and new weights on the same cases and keep all of it in a file.

    Args:
        before: Weights that training began with.
        after: The new weights.
        cases: Cases that neither has seen.
        path: The JSON file to write.
        device: Where to compute.
        facts: Further provenance, such as the command.
        on_target: As `measure`.

    Returns:
        The table of `comparison_table`.

    Raises:
        CheckpointError: The folder cannot be written.
    """
    old, new = (measure(w, cases, device=device, on_target=on_target) for w in (before, after))
    provenance = {
        "commit": git_commit(Path(__file__).parent),
        "device": _device_name(device),
        "torch": torch.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "protocol": f"{NUM_CLICKS} clicks, each at the centre of the largest error",
        "cases": [case.name for case in cases],
        **(facts or {}),
    }
    content = {"provenance": provenance, "before": old, "after": new}
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
    return comparison_table(old, new)


def comparison_table(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return both measurements as text, one line per structure and their mean.

    Args:
        before: From `measure`, the weights that training began with.
        after: The new weights on the same cases.
    """
    head = "".join(f"{f'Dice@{n}':>18}" for n in SHOWN_CLICKS)
    names = [*before["by_structure"], "mean"]
    width = max(12, *(len(name) for name in names))
    lines = [f"{'held out':<{width}}{head}"]
    for name in names:
        old, new = (
            m["dice"] if name == "mean" else m["by_structure"][name] for m in (before, after)
        )
        cells = "".join(f"{f'{old[n - 1]:.3f} -> {new[n - 1]:.3f}':>18}" for n in SHOWN_CLICKS)
        lines.append(f"{name:<{width}}{cells}")
    lines.append(f"{before['num_targets']} targets, original grid, clicks at the largest error")
    return "\n".join(lines)


def _mean_dice(rows: Sequence[Row]) -> list[float]:
    """Return the mean Dice after click 1, 2, ..."""
    rounds = range(1, NUM_CLICKS + 1)
    return [float(np.mean([row.dice for row in rows if row.round == n])) for n in rounds]


def _device_name(device: str) -> str:
    is_cuda = device != "cpu" and torch.cuda.is_available()
    return torch.cuda.get_device_name() if is_cuda else cpu_name()
