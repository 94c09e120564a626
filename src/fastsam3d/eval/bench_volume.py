"""What a volume costs: clicks against its size, prompts and objects; a file to a saved mask.

``fastsam3d bench --preset volume`` runs it. All volumes are synthesised: noise with balls of 20 mm
across on a grid of 0.8 x 0.8 x 1 mm, the same around the clicks whatever the volume's size. The
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
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from fastsam3d.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from fastsam3d.session import Session
    from fastsam3d.volume import Volume

    Shape = tuple[int, int, int]

VOLUME_FORMAT: Final = 1
SPACING_MM: Final = (0.8, 0.8, 1.0)
BALL_MM: Final = 20.0
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

    def __post_init__(self) -> None:
        """Check the values."""
        counts = (self.threads, self.rounds, self.clicks, self.objects)
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
        ``objects`` and ``files``.

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
    }
    with tempfile.TemporaryDirectory(prefix="fastsam3d-bench-") as scratch:
        result["files"] = time_files(config, Path(scratch), say)
    return result


def synthesise(shape: Shape, *, seed: int = 0, objects: int = 1) -> Volume:
    """Return noise with bright balls, int16, i fastest, as CT files have it.

    Args:
        shape: Voxels.
        seed: Of the noise; the same around the middle for every shape.
        objects: Balls, side by side along i, the first in the middle.
    """
    from fastsam3d.volume import Geometry, Volume  # noqa: PLC0415

    noise = np.random.default_rng(seed).normal(40.0, 20.0, (128, 128, 128)).astype(np.int16)
    array = np.empty(shape, np.int16, order="F")
    # The noise repeats, and its phase is that of the middle.
    near = [(np.arange(side) - side // 2) % 128 for side in shape]
    plane = np.ix_(near[0], near[1])
    for k, source in enumerate(near[2]):
        array[:, :, k] = noise[:, :, source][plane]
    for centre in ball_centres(shape, objects):
        _add_ball(array, centre)
    return Volume(array, Geometry(shape, np.diag([*SPACING_MM, 1.0])))


def ball_centres(shape: Shape, count: int) -> list[Shape]:
    """Return the middles of balls, voxels, the first in the middle of the volume."""
    i, j, k = (side // 2 for side in shape)
    pitch = math.ceil(1.5 * BALL_MM / SPACING_MM[0])
    columns = max(1, shape[0] // pitch)
    rows = max(1, shape[1] // pitch)
    return [
        ((i + n % columns * pitch) % shape[0], (j + n // columns % rows * pitch) % shape[1], k)
        for n in range(count)
    ]


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
        before = _now()
        session.add_point(voxel)
        rows.append({"clicks": n + 1, **_since(before, "")})
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
        before = _now()
        study.add(item, Point.voxel((i, j, k)))
        first = _since(before, "first_")
        before = _now()
        study.add(item, Point.voxel((i, j + 1, k)))
        rows.append({"objects": n + 1, **first, **_since(before, "later_")})
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
    before = _now()
    session.set_volume(volume)
    answer = session.add_point((i, j, k))
    sample: dict[str, Any] = {"encode_ms": answer.encode_ms, **_since(before, "first_")}
    sample |= {"later_ms": [], "later_cpu_ms": []}
    for n in range(LATER_CLICKS):
        before = _now()
        session.add_point((i + n - 1, j + 2, k))
        for name, value in _since(before, "later_").items():
            sample[name].append(value)
    return sample


def _add_ball(array: NDArray[np.int16], centre: Shape) -> None:
    squares: list[NDArray[np.float64]] = []
    box: list[slice] = []
    for middle, spacing, side in zip(centre, SPACING_MM, array.shape, strict=True):
        far = math.ceil(BALL_MM / 2 / spacing)
        first, stop = max(0, middle - far), min(side, middle + far + 1)
        box.append(slice(first, stop))
        offsets_mm = (np.arange(first, stop, dtype=np.float64) - middle) * spacing
        squares.append(np.square(offsets_mm))
    inside = squares[0][:, None, None] + squares[1][:, None] + squares[2] < (BALL_MM / 2) ** 2
    array[tuple(box)] += np.where(inside, 200, 0).astype(np.int16)


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


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(before: tuple[float, float], prefix: str) -> dict[str, float]:
    wall, cpu = (1e3 * (now - then) for now, then in zip(_now(), before, strict=True))
    return {f"{prefix}ms": wall, f"{prefix}cpu_ms": cpu}


def _say_nothing(_: str) -> None:
    return
