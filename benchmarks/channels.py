r"""Is an answer on several MR channels better than on one? A few structures of one patient.

    python benchmarks/channels.py --channels Flair=a.nii.gz,T1c=b.nii.gz --labels l.nii.gz \
        --output channels.json

The same simulated user (protocol "clicks") plays every label, and the whole tumour as one, on each
channel, on the mean of their logits and on the mean of their probabilities. The truth places clicks
and scores, nothing else reads it. One patient shows that it works, and proves no rule.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastsam3d.eval.boxed import boxed_dice
from fastsam3d.eval.cases import EvalCase
from fastsam3d.eval.protocol import InteractionProtocol
from fastsam3d.eval.provenance import cpu_name, git_commit
from fastsam3d.eval.runner import play_clicks, protocol_clicker
from fastsam3d.io import read_mask, read_volume
from fastsam3d.session import Session
from fastsam3d.session.channels import COMBINATIONS, stack_channels


def main() -> int:
    """Measure; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels", required=True, help="name=file, separated by commas")
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--model", default="hr_s")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clicks", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    commit = git_commit(Path(__file__).parent)
    pairs = (part.split("=", 1) for part in options.channels.split(","))
    channels = {name: read_volume(Path(path)) for name, path in pairs}
    labels = read_mask(options.labels).array
    everything = (labels > 0).astype(np.uint8) * (int(labels.max()) + 1)
    protocol = InteractionProtocol(num_clicks=options.clicks)
    session = Session.from_pretrained(options.model, device=options.device)
    rows: list[dict[str, Any]] = []
    for combination in COMBINATIONS:
        study = stack_channels(channels, combination=combination)
        session.set_volume(study)
        names = ("all", *study.names) if combination == COMBINATIONS[0] else ("all",)
        for truth_labels in (labels, everything):
            case = EvalCase(name="patient", source="patient", volume=study, labels=truth_labels)
            for target in protocol.targets(case):
                for name in names:
                    session.reset()
                    session.set_channel(name)
                    clicker = protocol_clicker(protocol, case, target, 0)
                    rounds = play_clicks(session, target.truth, clicker, num_clicks=options.clicks)
                    dice = [round(boxed_dice(one.mask, target.truth), 4) for one in rounds]
                    label = "whole" if truth_labels is everything else str(target.label)
                    seen = f"mean of {combination}" if name == "all" else name
                    rows.append({"label": label, "seen": seen, "dice": dice})
                    sys.stderr.write(f"{rows[-1]}\n")
    means = {
        seen: np.mean([row["dice"] for row in rows if row["seen"] == seen], axis=0)
        .round(4)
        .tolist()
        for seen in dict.fromkeys(row["seen"] for row in rows)
    }
    result = {
        "command": shlex.join(["python", "benchmarks/channels.py", *sys.argv[1:]]),
        "commit": commit,
        "date": datetime.now(UTC).date().isoformat(),
        "device": cpu_name() if options.device == "cpu" else options.device,
        "python": platform.python_version(),
        "mean_dice_after_each_click": means,
        "rows": rows,
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(means, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
