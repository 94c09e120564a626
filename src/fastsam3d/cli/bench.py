"""``fastsam3d bench``: what an answer costs, for any list of models in one run."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from fastsam3d.cli.progress import show_progress
from fastsam3d.cli.usage import UsageError

if TYPE_CHECKING:
    from fastsam3d.eval.bench import BenchConfig


@Parameter(name="*", group="How to time")
@dataclass(frozen=True, kw_only=True)
class TimingOptions:
    """How to time.

    Attributes:
        preset: cpu or gpu: the models of the documentation and fitting settings, where you name
            none; checkouts of published code are timed beside them. volume: what one model costs
            on volumes up to 512x512x1000, by clicks, objects and sessions, and from a file to a
            saved mask.
        reference: Label of the model that ratios refer to; by default the first. Published
            modules are called official:fastsam3d_6l and official:sam_med3d_b.
        device: Where to compute; cpu without a preset.
        precision: float32 without TF32, tf32, or bfloat16 by autocast; float32 without a preset.
        threads: CPU threads of each model; 1 without a preset.
        rounds: Timed rounds; 7, of volumes 3.
        warmup: Rounds before them that do not count.
    """

    preset: Literal["cpu", "gpu", "volume"] | None = None
    reference: str = ""
    device: Literal["cpu", "cuda"] | None = None
    precision: Literal["float32", "tf32", "bfloat16"] | None = None
    threads: int | None = None
    rounds: int | None = None
    warmup: int = 1


def bench(
    *models: str,
    official: Annotated[tuple[Path, ...], Parameter(negative="")] = (),
    image: Path | None = None,
    point: Annotated[str, Parameter(metavar="I,J,K")] = "",
    output: Path | None = None,
    timing: TimingOptions = TimingOptions(),
) -> None:
    """Time encoding, clicks and the whole answer; count FLOPs, parameters and memory.

    Every model runs in a process of its own and they are timed in turn. Models without weights
    are timed with random ones and say so.

    Args:
        models: Names or .safetensors paths; NAME@reference runs the padded attention of the
            published releases in place of the exact fast one.
        official: Checkout of the published FastSAM3D or SAM-Med3D code, to be timed too. May be
            given several times. Its code runs in a process of its own.
        image: Also time a whole session on this scan; needs --point.
        point: First click in the scan, voxel indices.
        output: JSON file to write, with every single time.
        timing: How to time.
    """
    if timing.preset == "volume":
        _bench_volume(models, official, image, timing=timing, output=output)
        return
    from fastsam3d.eval.bench import cost_table, provenance, run_bench, write_bench

    config = _config(models, official, image, point=_voxel(image, point), timing=timing)
    facts = provenance(["fastsam3d", *sys.argv[1:]], config)
    with show_progress("Starting") as say:
        result = run_bench(config, on_step=say)
    header, *rows = cost_table(result)
    table = Table(title=f"{facts['device']}, {config.precision}: median (95th percentile)")
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number < 2 else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    if output is not None:
        write_bench(output, result, facts)
        print(f"Wrote {output}")


def _config(
    models: tuple[str, ...],
    official: tuple[Path, ...],
    image: Path | None,
    *,
    point: tuple[int, int, int],
    timing: TimingOptions,
) -> BenchConfig:
    """Return what is asked for; words of the command line come before those of a preset."""
    from fastsam3d.eval.bench import BenchConfig
    from fastsam3d.eval.bench_presets import Preset, find_preset

    preset = find_preset(timing.preset) if timing.preset else Preset(models=(), threads=1)
    return BenchConfig(
        models=models or preset.models,
        official=official,
        image=image,
        point=point,
        reference=timing.reference or ("" if models else preset.reference),
        device=timing.device or preset.device,
        precision=timing.precision or preset.precision,
        threads=timing.threads or preset.num_threads,
        rounds=7 if timing.rounds is None else timing.rounds,
        warmup=timing.warmup,
    )


def _bench_volume(
    models: tuple[str, ...],
    official: tuple[Path, ...],
    image: Path | None,
    *,
    timing: TimingOptions,
    output: Path | None,
) -> None:
    if len(models) > 1 or official or image is not None:
        raise UsageError("--preset volume times one model on volumes of its own making.")
    from fastsam3d.eval.bench import provenance, write_bench
    from fastsam3d.eval.bench_volume import VolumeBenchConfig, run_volume_bench, size_table

    config = VolumeBenchConfig(
        model=models[0] if models else "hr_s",
        device=timing.device or "cpu",
        threads=timing.threads or 1,
        rounds=3 if timing.rounds is None else timing.rounds,
    )
    told = _config((config.model,), (), None, point=(0, 0, 0), timing=replace(timing, preset=None))
    facts = provenance(["fastsam3d", *sys.argv[1:]], told)
    with show_progress("Starting") as say:
        result = run_volume_bench(config, on_step=say)
    for line in size_table(result):
        print(line)
    if output is not None:
        write_bench(output, result, facts)
        print(f"Wrote {output}")


def _voxel(image: Path | None, text: str) -> tuple[int, int, int]:
    if (image is None) != (not text):
        raise UsageError("--image and --point I,J,K go together: give both or none.")
    if image is None:
        return (0, 0, 0)
    try:
        i, j, k = (int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--point must be three whole numbers I,J,K, got {text!r}.") from error
    return (i, j, k)
