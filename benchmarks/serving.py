"""What the two benchmarks of the server share: a server in a process of its own, and records."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import shlex
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Generator


@contextmanager
def server(*words: str) -> Generator[tuple[str, int]]:
    """Run ``fastsam3d serve`` on a free loopback port; gives its address and process id."""
    command = [sys.executable, "-m", "fastsam3d", "serve", "--port", "0", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            line = process.stdout.readline() if process.stdout else ""
            if " at " not in line:
                raise RuntimeError(f"The server did not start: {line!r}")
            yield line.split(" at ")[1].split()[0], process.pid
        finally:
            process.terminate()
            process.wait(30)


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process and its children, in MiB (Linux).

    What they share is counted for each.
    """
    return sum(own_mib(one) for one in (pid, *children(pid)))


def own_mib(pid: int) -> float:
    """Return the resident memory of one process, in MiB (Linux)."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # It has just ended.
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def children(pid: int) -> list[int]:
    """Return the process ids of a process's children (Linux)."""
    lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(word) for text in lists for word in text.split()]


def engine_pid(pid: int) -> int | None:
    """Return the process id of a server's engine; None while it has none (Linux)."""
    for child in children(pid):
        if b"engine_child" in Path(f"/proc/{child}/cmdline").read_bytes():
            return child
    return None


def facts() -> dict[str, Any]:
    """Return what a record of a run says about where it ran."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    # Where files lay says nothing about a run.
    shown = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *shown]),
        "commit": commit.stdout.strip(),
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "device": cpu_name(),
        "load_average_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def cpu_name() -> str:
    """Return the name of the processor and what it can do that matters here."""
    text = Path("/proc/cpuinfo").read_text()
    name = next(
        line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")
    )
    flags = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "amx_bf16") if f" {flag} " in text]
    return f"{name} ({', '.join(flags)}), {os.cpu_count()} cores"


def write(record: dict[str, Any], output: Path | None) -> None:
    """Print a record, and keep it where asked to."""
    text = json.dumps(record, indent=1)
    print(text)
    if output is not None:
        output.write_text(text + "\n")
