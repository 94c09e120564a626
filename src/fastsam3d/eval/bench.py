"""The cost table: what an answer costs, for any list of models in one run.

`python -m fastsam3d.eval.bench hr_s sam_med3d_b --device cuda --output cost.json` needs torch and
numpy only; ``fastsam3d bench`` is the same with a nicer table. Every model runs in a process of its
own (`fastsam3d.eval.bench_worker`); rounds go through the models in turn, so that a change of clock
or load meets all of them, and every single time is kept. Times do not depend on the weights, but
for our own variants on a CPU, whose decoder works around the object: random weights are allowed
and labelled.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast, get_args

import numpy as np

from fastsam3d.errors import ConfigError
from fastsam3d.eval.bench_worker import CLICKS_PER_PASS, Precision, WorkerSpec
from fastsam3d.eval.provenance import cpu_name, git_commit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BENCH_FORMAT = 1
QUANTITIES = ("encode", "click", "end_to_end")
CPU_QUANTITIES = tuple(f"{quantity}_cpu" for quantity in QUANTITIES)
SESSION_QUANTITIES = ("session_first_click", "session_click")
GEMM_QUANTITIES = ("gemm", "gemm_cpu", "copy", "copy_cpu")
ALL_QUANTITIES = (*QUANTITIES, *CPU_QUANTITIES, *SESSION_QUANTITIES, *GEMM_QUANTITIES)
DEFINITIONS = {
    "encode": "ROI on the device to its embedding, synchronised",
    "click": "one more click with all points so far and the logits before, to a mask of the ROI's "
    "size on the device, synchronised",
    "end_to_end": "ROI in host memory to the first click's mask in host memory",
    "_cpu": "processor time of the same; it does not count waiting for a busy machine",
    "session_first_click": "whole session on a scan: cut, encode, decode, paste",
    "session_click": "whole session on a scan: a second click",
    "cold": "first pass in a fresh process with the model loaded",
    "flops": "torch.utils.flop_counter, two per multiply-add",
    "peak_memory": "CUDA: max_memory_allocated in the first pass, weights included; CPU: rise of "
    "the resident set in the first pass, weights not included; null where unknown",
    "ratio": "p50 of the reference over p50 of this model: above 1 is faster than the reference",
    "gemm": "product of two square matrices in the same precision, in turn with the rest",
    "copy": "of a large piece of memory on the device, in turn with the rest",
    "over_floor": "p50 over the time that the same FLOPs take in that product: 1 is the device's "
    "limit; below it, an algorithm that needs fewer FLOPs than are counted",
    "over_roofline": "p50 over the longer of that time and the time that reading weights and input "
    "and writing the output once takes at the speed of the copy",
    "@cuda_graph": "bfloat16, compiled, replayed; its click ends with the mask as bits in host "
    "memory, which is more than the others' does",
    "input": f"one ROI, a ball of 0.4 of its side in noise; {CLICKS_PER_PASS} clicks per pass",
}


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What to time.

    Attributes:
        models: Names or weights paths; ``NAME@reference`` runs the padded attention of the
            published releases.
        official: Checkouts of the published FastSAM3D or SAM-Med3D code.
        reference: Label of the model that ratios refer to; the first one when empty. Published
            modules are labelled ``official:fastsam3d_6l`` and ``official:sam_med3d_b``.
        device: "cpu" or "cuda".
        precision: "float32" (no TF32), "tf32" or "bfloat16".
        threads: CPU threads of each model.
        rounds: Timed rounds.
        warmup: Rounds before them that do not count.
        load_seconds: A model that is not loaded, and compiled if need be, by then is left out.
        image: Also time a whole session on this scan; published modules have none.
        point: First click in it, voxel i, j, k.

    Raises:
        ConfigError: Nothing to time, or a count that is too small.
    """

    models: tuple[str, ...] = ()
    official: tuple[Path, ...] = ()
    reference: str = ""
    device: str = "cpu"
    precision: Precision = "float32"
    threads: int = 1
    rounds: int = 7
    warmup: int = 1
    load_seconds: float = 600.0
    image: Path | None = None
    point: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        """Check the values."""
        if not self.models and not self.official:
            raise ConfigError("Nothing to time; name a model or give --official CHECKOUT.")
        if min(self.rounds, self.threads) < 1 or self.warmup < 0:
            raise ConfigError(
                f"Rounds and threads must be at least 1 and warmup 0, got {self.rounds}, "
                f"{self.threads} and {self.warmup}."
            )
        if self.precision not in get_args(Precision) or self.device not in {"cpu", "cuda"}:
            raise ConfigError(
                f"Precision must be one of {get_args(Precision)} and device cpu or cuda, got "
                f"{self.precision!r} and {self.device!r}."
            )

    def worker_specs(self) -> list[WorkerSpec]:
        """Return one spec per model, in the order given, published modules last."""
        image = "" if self.image is None else str(self.image)
        own = [
            WorkerSpec(
                name=name,
                device=self.device,
                precision=self.precision,
                threads=self.threads,
                image="" if "@" in name else image,
                point=self.point,
            )
            for name in self.models
        ]
        theirs = [
            WorkerSpec(
                official=str(path),
                device=self.device,
                precision=self.precision,
                threads=self.threads,
            )
            for path in self.official
        ]
        return own + theirs


class Worker:
    """A contender's process, asked by words; a context manager.

    Args:
        spec: What it shall run.

    Raises:
        ConfigError: The contender could not be made.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        self.has_session = bool(spec.image)
        self.name = spec.name or spec.official or ""
        command = [sys.executable, "-m", "fastsam3d.eval.bench_worker", json.dumps(asdict(spec))]
        threads = {"OMP_NUM_THREADS": str(spec.threads)} if spec.threads else {}
        self._process = subprocess.Popen(  # noqa: S603 - this package's own module
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env={**os.environ, **threads},
        )
        self.label = ""

    def wait_ready(self, seconds: float) -> None:
        """Wait until the model is loaded, and compiled if it is to be.

        Raises:
            ConfigError: It could not be made in that time.
        """
        timer = threading.Timer(seconds, self._process.kill)
        timer.start()
        try:
            self.label = str(self._read()["label"])
        finally:
            timer.cancel()

    def ask(self, word: str) -> dict[str, Any]:
        """Send one word of `bench_worker.serve` and return the reply.

        Raises:
            ConfigError: The worker reports a typed error or has died.
        """
        stdin = self._process.stdin
        assert stdin is not None  # noqa: S101 - opened above
        try:
            stdin.write(word + "\n")
            stdin.flush()
        except BrokenPipeError:
            pass  # what it died of is read below
        return self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None  # noqa: S101 - opened above
        line = stdout.readline()
        if not line:
            status = self._process.wait()
            raise ConfigError(f"A benchmark process ended with status {status}; see its traceback.")
        reply = cast("dict[str, Any]", json.loads(line))
        if "error" in reply:
            raise ConfigError(str(reply["error"]))
        return reply


def run_bench(
    config: BenchConfig,
    *,
    on_step: Callable[[str], None] | None = None,
    on_result: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Time all models and return the table as JSON-compatible data.

    Args:
        config: What to time.
        on_step: Called with a line of progress.
        on_result: Called with what is known after every round.

    Returns:
        ``format``, ``definitions``, ``reference``, ``rounds`` and ``models``: per model ``name``,
        ``weights`` ("shipped", "file" or "random"), ``image_size``, ``parameters``,
        ``encode_flops``, ``click_flops``, ``gemm_flops``, ``peak_memory_bytes``, ``ratio`` and
        ``over_floor`` per quantity, and per quantity ``cold_ms``, ``p50_ms``, ``p95_ms``,
        ``fastest_ms`` and ``samples_ms``; and ``failed``, the reasons of models left out.

    Raises:
        ConfigError: No model can be made, or the reference is none of them.
    """
    say = on_step or _say_nothing
    with ExitStack() as stack:
        # All at once: where models are compiled, that takes longer than all the rest.
        workers = [stack.enter_context(Worker(spec)) for spec in config.worker_specs()]
        field = _Field(workers, config, say)
        field.attempt("loading", lambda worker: worker.wait_ready(config.load_seconds))
        reference = config.reference or (field.labels or [""])[0]
        if reference not in field.labels:
            raise ConfigError(
                f"Reference {reference!r} is not timed; choose one of {field.labels}. "
                f"{'; '.join(field.failed.values())}"
            )
        field.attempt("first pass of", field.first_pass)
        for number in range(config.warmup + config.rounds):
            is_timed = number >= config.warmup
            say(f"round {number + 1} of {config.warmup + config.rounds}")
            field.attempt("", lambda worker, keep=is_timed: field.one_round(worker, keep=keep))
            if number == config.warmup:
                field.attempt("facts of", field.facts)
            if is_timed and on_result is not None:
                on_result(field.result(reference))
        return field.result(reference)


class _Field:
    """The contenders that are still in the race, and what is known of them."""

    def __init__(
        self, workers: list[Worker], config: BenchConfig, say: Callable[[str], None]
    ) -> None:
        self._workers, self._config, self._say = workers, config, say
        self._rows: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, str] = {}

    @property
    def labels(self) -> list[str]:
        """Labels of the contenders that have not failed."""
        return [worker.label for worker in self._workers]

    def attempt(self, what: str, step: Callable[[Worker], None]) -> None:
        """Take a step with every contender; those that fail are left out from then on."""
        for worker in list(self._workers):
            begin = time.monotonic()
            try:
                step(worker)
            except ConfigError as error:
                self._workers.remove(worker)
                self._rows.pop(worker.label, None)
                self.failed[worker.name] = f"{worker.name}: {error}"
                self._say(f"left out: {self.failed[worker.name]}")
            else:
                if what:
                    self._say(f"{what} {worker.name} ({time.monotonic() - begin:.1f} s)")
        if not self._workers:
            raise ConfigError(" ".join(self.failed.values()))

    def first_pass(self, worker: Worker) -> None:
        """Time the cold pass."""
        self._rows[worker.label] = _first_pass(worker)

    def one_round(self, worker: Worker, *, keep: bool) -> None:
        """Time one round."""
        for quantity, values in _samples(worker).items():
            if keep:
                self._rows[worker.label][quantity]["samples_ms"].extend(values)

    def facts(self, worker: Worker) -> None:
        """Ask for the sizes."""
        self._rows[worker.label].update(worker.ask("facts"))

    def result(self, reference: str) -> dict[str, Any]:
        """Return what `run_bench` returns, as far as it is known."""
        return {
            "format": BENCH_FORMAT,
            "definitions": DEFINITIONS,
            "rounds": self._config.rounds,
            "reference": reference,
            "models": with_statistics(list(self._rows.values()), reference),
            "failed": self.failed,
        }


def with_statistics(rows: list[dict[str, Any]], reference: str) -> list[dict[str, Any]]:
    """Return rows with percentiles and with ratios to the reference.

    Args:
        rows: Each with ``name`` and, per quantity, ``samples_ms``.
        reference: Name of one row.

    Returns:
        New rows; a ratio is that of the p50s and given for quantities that both have.
    """
    done: list[dict[str, Any]] = []
    for row in rows:
        new = dict(row)
        for quantity in ALL_QUANTITIES:
            if quantity in row:
                samples = row[quantity]["samples_ms"]
                p50, p95 = (float(v) for v in np.percentile(samples, [50, 95]))
                found = {"p50_ms": p50, "p95_ms": p95, "fastest_ms": min(samples)}
                new[quantity] = {**row[quantity], **found}
        done.append(new)
    base = next(row for row in done if row["name"] == reference)
    for row in done:
        row["ratio"] = {
            quantity: base[quantity]["p50_ms"] / row[quantity]["p50_ms"]
            for quantity in ALL_QUANTITIES
            if quantity in row and quantity in base
        }
        row["over_floor"] = _over_floor(row)
        row["over_roofline"] = _over_roofline(row)
    return done


def _over_floor(row: dict[str, Any]) -> dict[str, float]:
    """Return how many times as long as the device's limit encoding and a click take."""
    found: dict[str, float] = {}
    for suffix in ("", "_cpu"):
        if f"gemm{suffix}" not in row or "gemm_flops" not in row:
            continue
        ms_per_flop: float = row[f"gemm{suffix}"]["p50_ms"] / row["gemm_flops"]
        for part in ("encode", "click"):
            floor_ms = ms_per_flop * row[f"{part}_flops"]
            found[part + suffix] = row[part + suffix]["p50_ms"] / floor_ms
    return found


def _over_roofline(row: dict[str, Any]) -> dict[str, float]:
    """Return the same over the longer of computing and of moving bytes."""
    if "copy" not in row or "copy_bytes" not in row:
        return {}
    ms_per_byte: float = row["copy"]["p50_ms"] / row["copy_bytes"]
    return {
        part: min(
            row["over_floor"][part], row[part]["p50_ms"] / (ms_per_byte * row[f"{part}_bytes"])
        )
        for part in ("encode", "click")
    }


def cost_table(result: dict[str, Any]) -> list[list[str]]:
    """Return the table as rows of text, the header first.

    Args:
        result: What `run_bench` returned.
    """
    header = ["model", "weights", "encode ms", "click ms", "end to end ms", "cold ms"]
    header += [
        f"x {result['reference']}",
        "x by CPU time",
        "encode/floor",
        "roofline",
        "click roofline",
        "GFLOP",
        "GFLOP/click",
        "M param",
        "peak MB",
    ]
    rows = [header]
    for row in result["models"]:
        peak = row["peak_memory_bytes"]
        rows.append(
            [
                row["name"],
                row["weights"],
                *(f"{row[q]['p50_ms']:.3g} ({row[q]['p95_ms']:.3g})" for q in QUANTITIES),
                f"{row['end_to_end']['cold_ms']:.1f}",
                f"{row['ratio']['end_to_end']:.2f}",
                f"{row['ratio']['end_to_end_cpu']:.2f}" if "end_to_end_cpu" in row else "-",
                f"{row['over_floor']['encode']:.2f}" if "encode" in row["over_floor"] else "-",
                *(_times(row["over_roofline"].get(part)) for part in ("encode", "click")),
                f"{row['encode_flops'] / 1e9:.1f}",
                f"{row['click_flops'] / 1e9:.2f}",
                f"{row['parameters'] / 1e6:.1f}",
                "-" if peak is None else f"{peak / 1e6:.0f}",
            ]
        )
    return rows


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def provenance(command: Sequence[str], config: BenchConfig) -> dict[str, Any]:
    """Return what is needed to run the same again; taken before the run.

    Args:
        command: The words that started it.
        config: What is timed.
    """
    import torch  # noqa: PLC0415 - heavy

    is_cuda = config.device == "cuda" and torch.cuda.is_available()
    return {
        "command": shlex.join(command),
        "commit": git_commit(Path(__file__).parent),
        "official_commits": {p.name: git_commit(p) for p in config.official},
        "device": torch.cuda.get_device_name() if is_cuda else cpu_name(),
        "threads": config.threads,
        "precision": config.precision,
        "load_average_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_bench(path: Path, result: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write provenance and table to a JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps({**facts, **result}, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def _first_pass(worker: Worker) -> dict[str, Any]:
    cold = worker.ask("cold")
    samples = dict(cold["samples"])
    if worker.has_session:
        samples.update(worker.ask("session"))
    row: dict[str, Any] = {"name": worker.label, "peak_memory_bytes": cold["peak_memory_bytes"]}
    for quantity, values in samples.items():
        row[quantity] = {"cold_ms": values[0], "samples_ms": []}
    return row


def _samples(worker: Worker) -> dict[str, list[float]]:
    samples = worker.ask("pass")
    return {**samples, **worker.ask("session")} if worker.has_session else samples


def _say_nothing(_: str) -> None:
    return


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fastsam3d.eval.bench", description=__doc__)
    parser.add_argument("models", nargs="*", help="names or paths; NAME@reference for padded")
    parser.add_argument("--official", type=Path, action="append", default=[], metavar="CHECKOUT")
    parser.add_argument("--reference", default="", help="model that ratios refer to")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=get_args(Precision), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--load-seconds", type=float, default=600.0, help="then without it")
    parser.add_argument("--image", type=Path, help="also time a session on this scan")
    parser.add_argument("--point", type=_voxel, default=(0, 0, 0), help="first click, I,J,K")
    parser.add_argument("--output", type=Path, help="JSON file")
    return parser


def _voxel(text: str) -> tuple[int, int, int]:
    i, j, k = (int(part) for part in text.split(","))
    return (i, j, k)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; see ``--help``."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = vars(_parser().parse_args(given))
    output: Path | None = options.pop("output")
    for name in ("models", "official"):
        options[name] = tuple(options[name])
    config = BenchConfig(**options)
    facts = provenance(["python", "-m", "fastsam3d.eval.bench", *given], config)

    def keep(result: dict[str, Any]) -> None:
        if output is not None:
            write_bench(output, result, facts)

    def say(line: str) -> None:
        sys.stderr.write(f"{datetime.now(UTC):%H:%M:%S} {line}\n")
        sys.stderr.flush()

    result = run_bench(config, on_step=say, on_result=keep)
    rows = cost_table(result)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        sys.stdout.write("  ".join(padded).rstrip() + "\n")
    if output is not None:
        write_bench(output, result, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
