"""What a volume costs: clicks by its size, prompts, objects and sessions; a file to a saved mask.

``fastsam3d bench --preset volume`` runs it. All volumes are synthesised, see `bench_phantom`. The
command is timed in a process of its own, on a file, which is how a user meets it.
"""

from __future__ import annotations

import compileall
import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final, cast

from fastsam3d.errors import ConfigError
from fastsam3d.eval.bench_phantom import Shape, ball_centres, now, since, synthesise
from fastsam3d.eval.bench_sessions import time_sessions

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastsam3d.session import Session

VOLUME_FORMAT: Final = 1
SHAPES: Final = (
    (64, 64, 64),
    (128, 128, 128),
    (256, 256, 256),
    (512, 512, 300),
    (512, 512, 600),
    (512, 512, 1000),
)
LATER_CLICKS: Final = 4
DEFINITIONS: Final = {
    "first_ms": "set_volume and a first click, encoding included, wall clock; median of the rounds",
    "later_ms": "one more click on the same object, wall clock; median of all",
    "_cpu_ms": "processor time of the same; it does not count waiting for a busy machine",
    "spread": "slowest over fastest size, less 1: 0 is flat",
    "clicks": "the n-th click on one object",
    "objects": "first click on the n-th object of one study, its embedding not at hand",
    "sessions": "n sessions that share one predictor, each on a volume of its own, take turns in "
    "one thread, a click each, as a server's do; times are of one click, turn_ms of one by each",
    "mismatches": "answers of those sessions that are not the same to the voxel as when each "
    "session plays its clicks alone",
    "file": "`fastsam3d segment FILE.nii.gz --point ... -o MASK.nii.gz` in a fresh process: wall "
    "and processor time from start to exit, peak resident memory of the process; the package is "
    "compiled to bytecode before, as installers do",
    "peak_over_volume": "peak memory over the bytes of the volume's voxels in the file's type",
    "rise_over_volume": "the same for what the peak exceeds that of the smallest file",
}


@dataclass(frozen=True, kw_only=True)
class VolumeBenchConfig:
    """What to time.

    Attributes:
        model: Name of a model with weights, or a weights file.
        device: "cpu" or "cuda".
        threads: CPU threads.
        rounds: Timed rounds for each size.
        shapes: Volumes to click in, in memory; the first is the smallest.
        file_shapes: Volumes to segment from a file; the first is the smallest.
        clicks: Clicks on one object.
        objects: Objects in one study.
        sessions: Numbers of sessions that share the model.

    Raises:
        ConfigError: A count is below 1, or a volume too small for the object.
    """

    model: str = "hr_s"
    device: str = "cpu"
    threads: int = 1
    rounds: int = 3
    shapes: tuple[Shape, ...] = SHAPES
    file_shapes: tuple[Shape, ...] = ((64, 64, 64), (512, 512, 600))
    clicks: int = 16
    objects: int = 8
    sessions: tuple[int, ...] = (1, 2, 4, 8, 16)

    def __post_init__(self) -> None:
        """Check the values."""
        counts = (self.threads, self.rounds, self.clicks, self.objects, *self.sessions)
        sides = [side for shape in (*self.shapes, *self.file_shapes) for side in shape]
        if min(counts) < 1 or not self.shapes or min(sides) < 8:
            message = f"Counts must be at least 1 and sides at least 8 voxels, got {self}."
            raise ConfigError(message)


def run_volume_bench(
    config: VolumeBenchConfig, *, on_step: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Time everything and return it as JSON-compatible data.

    Args:
        config: What to time.
        on_step: Called with a line of progress.

    Returns:
        ``format``, ``kind``, ``definitions``, ``config``, ``sizes``, ``spread``, ``clicks``,
        ``objects``, ``sessions`` and ``files``.

    Raises:
        FastSAM3DError: The model cannot be loaded, or the command failed.
    """
    import torch  # noqa: PLC0415 - heavy

    from fastsam3d.session import Session  # noqa: PLC0415

    say = on_step or _say_nothing
    torch.set_num_threads(config.threads)
    say(f"loading {config.model}")
    session = Session.from_pretrained(config.model, device=cast("Any", config.device))
    sizes = time_sizes(session, config, say)
    say(f"{config.clicks} clicks and {config.objects} objects")
    result = {
        "format": VOLUME_FORMAT,
        "kind": "volume",
        "definitions": DEFINITIONS,
        "config": asdict(config),
        "sizes": sizes,
        "spread": spreads(sizes),
        "clicks": time_clicks(session, config.clicks),
        "objects": time_objects(session, config.objects),
        "sessions": time_sessions(session.predictor, config.sessions, config.rounds, say),
    }
    with tempfile.TemporaryDirectory(prefix="fastsam3d-bench-") as scratch:
        result["files"] = time_files(config, Path(scratch), say)
    return result


def time_sizes(
    session: Session, config: VolumeBenchConfig, say: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """Return the times of first and later clicks for each size.

    The sizes take turns, smallest to largest, once without being counted.

    Args:
        session: Its volume is replaced.
        config: Sizes and rounds.
        say: Called with a line of progress.
    """
    rows: list[dict[str, Any]] = [
        {"shape": shape, "bytes": 2 * math.prod(shape), "samples": []} for shape in config.shapes
    ]
    for number in range(config.rounds + 1):
        for row in rows:
            say(f"round {number} of {config.rounds}: {row['shape']}")
            samples = _time_size(session, row["shape"])
            if number:
                row["samples"].append(samples)
    for row in rows:
        for name in ("first_ms", "first_cpu_ms", "encode_ms"):
            row[name] = median(sample[name] for sample in row["samples"])
        for name in ("later_ms", "later_cpu_ms"):
            row[name] = median(value for sample in row["samples"] for value in sample[name])
    return rows


def spreads(sizes: list[dict[str, Any]]) -> dict[str, float]:
    """Return slowest over fastest size, less 1, for each time."""
    names = ("first_ms", "first_cpu_ms", "later_ms", "later_cpu_ms")
    columns = {name: [row[name] for row in sizes] for name in names}
    return {name: max(column) / min(column) - 1.0 for name, column in columns.items()}


def size_table(result: dict[str, Any]) -> list[str]:
    """Return the main figures as lines of text.

    Args:
        result: What `run_volume_bench` returned.
    """
    lines = [f"{'volume':>16}  first click ms (CPU)  later click ms (CPU)"]
    for row in result["sizes"]:
        shape = "x".join(map(str, row["shape"]))
        first = f"{row['first_ms']:.0f} ({row['first_cpu_ms']:.0f})"
        later = f"{row['later_ms']:.0f} ({row['later_cpu_ms']:.0f})"
        lines.append(f"{shape:>16}  {first:>20}  {later:>20}")
    spread = result["spread"]
    lines.append(
        f"Spread over sizes by processor time: first click {spread['first_cpu_ms']:.0%}, "
        f"later clicks {spread['later_cpu_ms']:.0%}"
    )
    lines += [
        f"Sessions on one model: {row['sessions']}; first click {row['first_ms']:.0f} ms "
        f"({row['first_cpu_ms']:.0f}), later click {row['later_ms']:.0f} ms "
        f"({row['later_cpu_ms']:.0f}), one click of each {row['turn_ms']:.0f} ms; "
        f"{row['mismatches']} of {row['answers']} answers differ from the session alone"
        for row in result["sessions"]
    ]
    lines += [
        f"File of {'x'.join(map(str, row['shape']))} to saved mask: {row['wall_s']:.1f} s "
        f"({row['cpu_s']:.1f} s of processor), peak {row['peak_bytes'] / 2**20:.0f} MiB, "
        f"{row['peak_over_volume']:.2f} x the volume, "
        f"{row['rise_over_volume']:.2f} x beyond the smallest file"
        for row in result["files"]
    ]
    return lines


def time_clicks(session: Session, count: int) -> list[dict[str, float]]:
    """Return the times of one click after another on one object.

    Args:
        session: Its volume is replaced.
        count: How many.
    """
    volume = synthesise((160, 160, 160))
    session.set_volume(volume)
    i, j, k = ball_centres(volume.shape, 1)[0]
    rows: list[dict[str, float]] = []
    for n in range(count):
        voxel = (i + n % 3 - 1, j + n // 3 % 3 - 1, k + n // 9 % 3 - 1)
        before = now()
        session.add_point(voxel)
        rows.append({"clicks": n + 1, **since(before, "")})
    return rows


def time_objects(session: Session, count: int) -> list[dict[str, float]]:
    """Return the times of a first and a second click on one object after another of a study.

    Args:
        session: Its volume is replaced.
        count: How many.
    """
    from fastsam3d.prompts import Point  # noqa: PLC0415
    from fastsam3d.session import Study  # noqa: PLC0415

    volume = synthesise((256, 256, 160), objects=count)
    study = Study(session, volume)
    rows: list[dict[str, float]] = []
    for n, (i, j, k) in enumerate(ball_centres(volume.shape, count)):
        item = study.add_object(f"ball {n}")
        before = now()
        study.add(item, Point.voxel((i, j, k)))
        first = since(before, "first_")
        before = now()
        study.add(item, Point.voxel((i, j + 1, k)))
        rows.append({"objects": n + 1, **first, **since(before, "later_")})
    return rows


def time_files(
    config: VolumeBenchConfig, folder: Path, say: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """Return time and memory of ``fastsam3d segment`` on files.

    Args:
        config: Model, threads and sizes.
        folder: Where files may be written.
        say: Called with a line of progress.

    Raises:
        ConfigError: The command failed.
    """
    from fastsam3d.io import write_volume  # noqa: PLC0415

    compile_package()
    rows: list[dict[str, Any]] = []
    for shape in config.file_shapes:
        say(f"file of {shape}")
        image, mask = folder / "image.nii.gz", folder / "mask.nii.gz"
        write_volume(synthesise(shape), image)
        point = ",".join(str(side // 2) for side in shape)
        command = [sys.executable, "-m", "fastsam3d", "segment", str(image), "--point", point]
        command += ["-o", str(mask), "--force", "--model", config.model, "--device", config.device]
        samples = [run_measured(command, config.threads) for _ in range(config.rounds)]
        best = min(samples, key=lambda sample: sample["cpu_s"])
        peak = max(sample["peak_bytes"] for sample in samples)
        num_bytes = 2 * math.prod(shape)
        rows.append(
            {
                "shape": shape,
                "bytes": num_bytes,
                "file_bytes": image.stat().st_size,
                "wall_s": median(sample["wall_s"] for sample in samples),
                "cpu_s": best["cpu_s"],
                "peak_bytes": peak,
                "peak_over_volume": peak / num_bytes,
                "samples": samples,
            }
        )
    for row in rows:
        row["rise_over_volume"] = (row["peak_bytes"] - rows[0]["peak_bytes"]) / row["bytes"]
    return rows


def _time_size(session: Session, shape: Shape) -> dict[str, Any]:
    volume = synthesise(shape)
    i, j, k = ball_centres(shape, 1)[0]
    before = now()
    session.set_volume(volume)
    answer = session.add_point((i, j, k))
    sample: dict[str, Any] = {"encode_ms": answer.encode_ms, **since(before, "first_")}
    sample |= {"later_ms": [], "later_cpu_ms": []}
    for n in range(LATER_CLICKS):
        before = now()
        session.add_point((i + n - 1, j + 2, k))
        for name, value in since(before, "later_").items():
            sample[name].append(value)
    return sample


def compile_package(*folders: Path) -> None:
    """Compile Python files to bytecode, as installers do; a source tree may have none.

    Args:
        folders: Where they are; by default this package's.
    """
    for folder in folders or (Path(__file__).parents[1],):
        compileall.compile_dir(folder, quiet=2)


def run_measured(command: list[str], threads: int) -> dict[str, float]:
    """Run a command in a process that is watched.

    Args:
        command: What to run.
        threads: Given to OpenMP.

    Returns:
        ``wall_s``, ``cpu_s`` and ``peak_bytes`` of resident memory.

    Raises:
        ConfigError: It failed; its last words are in the message.
    """
    watcher = [sys.executable, "-c", _WATCHER, json.dumps(command)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(  # noqa: S603 - this package's own command
        watcher, capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        message = f"The command ended with status {done.returncode}: {done.stderr.strip()[-300:]}"
        raise ConfigError(message)
    return json.loads(done.stdout.splitlines()[-1])


# A small process of its own, since the kernel keeps one record for all children of a process.
_WATCHER = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
status = subprocess.run(json.loads(sys.argv[1]), stdout=subprocess.DEVNULL).returncode
wall = time.perf_counter() - started
used = resource.getrusage(resource.RUSAGE_CHILDREN)
unit = 1 if sys.platform == "darwin" else 1024
print(json.dumps({"wall_s": wall, "cpu_s": used.ru_utime + used.ru_stime,
                  "peak_bytes": used.ru_maxrss * unit}))
sys.exit(status)
"""


def _say_nothing(_: str) -> None:
    return
