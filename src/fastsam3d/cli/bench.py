"""``fastsam3d bench``: what an answer costs, for any list of models in one run."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from fastsam3d.cli.progress import show_progress
from fastsam3d.cli.usage import UsageError


@Parameter(name="*", group="How to time")
@dataclass(frozen=True, kw_only=True)
class TimingOptions:
    """How to time.

    Attributes:
        reference: Label of the model that ratios refer to; by default the first. Published
            modules are called official:fastsam3d_6l and official:sam_med3d_b.
        device: Where to compute.
        precision: float32 without TF32, tf32, or bfloat16 by autocast.
        threads: CPU threads of each model.
        rounds: Timed rounds.
        warmup: Rounds before them that do not count.
    """

    reference: str = ""
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    threads: int = 1
    rounds: int = 7
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
    from fastsam3d.eval.bench import BenchConfig, cost_table, provenance, run_bench, write_bench

    config = BenchConfig(
        models=models,
        official=official,
        image=image,
        point=_voxel(image, point),
        **asdict(timing),
    )
    facts = provenance(["fastsam3d", *sys.argv[1:]], config)
    with show_progress("Starting") as say:
        result = run_bench(config, on_step=say)
    header, *rows = cost_table(result)
    table = Table(title=f"{facts['device']}, {timing.precision}: median (95th percentile)")
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number < 2 else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
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
