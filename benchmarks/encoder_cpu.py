"""Time the compatible encoders on this CPU: exact fast attention against the padded reference.

Weights are random (time does not depend on them). The variants are timed in turn within each
round, so that a change of clock or load meets all of them, and every single time is kept.

Run from the repository root::

    python benchmarks/encoder_cpu.py --threads 2 --rounds 3 --output benchmarks/encoder_cpu.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

from fastsam3d.model.config import AttentionPath
from fastsam3d.model.registry import create_model
from fastsam3d.model.window_attention import WindowAttention

# What the published releases run, and what this package runs in its place.
BASELINE = "sam_med3d_b, padded reference"
TEACHER = "sam_med3d_b, exact fast"
STUDENT = "fastsam3d_6l, exact fast"


def main() -> None:
    """Parse the options, time the encoders and write the JSON."""
    parser = argparse.ArgumentParser(description="Time the compatible encoders on this CPU.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/encoder_cpu.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    before = circumstances()
    result = measure(options.rounds)
    options.output.write_text(json.dumps({**before, **result}, indent=2) + "\n")
    sys.stdout.write(f"{options.output}: {json.dumps(result['speedup_of_medians'])}\n")


def measure(num_rounds: int) -> dict[str, object]:
    """Return all times in seconds, both kinds of speed-up and the largest disagreement."""
    teacher, student = (create_model(name).eval() for name in ("sam_med3d_b", "fastsam3d_6l"))
    for name, parameter in teacher.named_parameters():
        if "rel_pos" in name:  # zero at creation, which would hide a wrong bias
            torch.nn.init.normal_(parameter, std=0.3)
    size = teacher.config.image_size
    image = torch.randn(1, 1, size, size, size, generator=torch.Generator().manual_seed(0))
    paths: tuple[tuple[str, AttentionPath], ...] = ((TEACHER, "fast"), (BASELINE, "reference"))
    seconds: dict[str, list[float]] = {BASELINE: [], TEACHER: [], STUDENT: []}
    difference = 0.0
    with torch.inference_mode():
        student.encode_image(image)  # the first call of a process pays for allocations
        for _ in range(num_rounds):
            tokens: dict[str, torch.Tensor] = {}
            for name, path in paths:
                set_attention_path(teacher, path)
                start = time.perf_counter()
                tokens[name] = teacher.encode_image(image).tokens
                seconds[name].append(time.perf_counter() - start)
            difference = max(difference, float((tokens[TEACHER] - tokens[BASELINE]).abs().max()))
            start = time.perf_counter()
            student.encode_image(image)
            seconds[STUDENT].append(time.perf_counter() - start)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    fastest = {name: min(times) for name, times in seconds.items()}
    return {
        "seconds": seconds,
        "speedup_of_medians": {n: median[BASELINE] / median[n] for n in (TEACHER, STUDENT)},
        # Other work on the machine only ever adds time: the fastest round is the least disturbed.
        "speedup_of_fastest": {n: fastest[BASELINE] / fastest[n] for n in (TEACHER, STUDENT)},
        "max_abs_difference_fast_reference": difference,
    }


def set_attention_path(model: torch.nn.Module, path: AttentionPath) -> None:
    """Choose the attention path of every block of a built model."""
    for module in model.modules():
        if isinstance(module, WindowAttention):
            module.path = path


def circumstances() -> dict[str, object]:
    """Return what is needed to run the same again: command, commit, machine, versions, date."""
    return {
        "command": "python " + shlex.join(sys.argv),
        "commit": git("rev-parse", "HEAD"),
        "device": cpu_name(),
        "threads": torch.get_num_threads(),
        "load_average_before": os.getloadavg()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "weights": "random",
        "input": "one ROI of 128^3, float32",
    }


def git(*arguments: str) -> str:
    """Return the output of a git command in the current folder."""
    return subprocess.run(  # noqa: S603 (fixed program, arguments of this file)
        ["git", *arguments],  # noqa: S607 (git of the PATH is meant)
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


def cpu_name() -> str:
    """Return the processor's name as the kernel gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
