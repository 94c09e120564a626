"""Time a warm session on the CPU: one first click (cut, encode, decode, paste), then more clicks.

python benchmarks/session_cpu.py IMAGE --point I,J,K --output benchmarks/session_cpu.json
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

from fastsam3d import Point, Session, read_volume


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser()
    parser.add_argument("image", type=Path)
    parser.add_argument("--point", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    first = tuple(int(n) for n in options.point.split(","))
    volume = read_volume(options.image)
    session = Session.from_pretrained("hr_s", device="cpu")
    encode: list[float] = []
    click: list[float] = []
    later: list[float] = []
    for repeat in range(options.repeats + 1):
        session.set_volume(volume)  # forgets the embeddings of the volume before
        answer = session.add_point(Point.voxel(first))
        started = time.perf_counter()
        session.add_point(Point.voxel((first[0] + 2, first[1], first[2])))
        wall = 1e3 * (time.perf_counter() - started)
        if repeat:  # the first round warms up
            encode.append(answer.encode_ms)
            click.append(answer.click_ms)
            later.append(wall)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    result = {
        "command": shlex.join(["python", "benchmarks/session_cpu.py", *sys.argv[1:]]),
        "commit": commit.stdout.strip(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": f"{platform.processor() or platform.machine()}, {options.threads} threads",
        "torch": torch.__version__,
        "first_click_encode_ms": statistics.median(encode),
        "first_click_rest_ms": statistics.median(click),
        "second_click_ms": statistics.median(later),
        "second_click_worst_ms": max(later),
        "repeats": options.repeats,
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
