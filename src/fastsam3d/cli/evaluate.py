"""``fastsam3d evaluate``: how well a segmenter does on your own cases, measured by clicks."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

from fastsam3d.cli.progress import show_progress
from fastsam3d.cli.usage import Flag, UsageError

if TYPE_CHECKING:
    from fastsam3d.eval.evaluation import EvaluationOptions, Outcome, Progress
    from fastsam3d.eval.groups import SeenGroups
    from fastsam3d.eval.protocol import InteractionProtocol

RANDOM_SEEDS = 5
CHALLENGE_MIN_VOXELS = 1
MIN_VOXELS = 30


@Parameter(name="*", group="Protocol")
@dataclass(frozen=True, kw_only=True)
class ProtocolOptions:
    """Who clicks where, and what counts.

    Attributes:
        protocol: clicks: on whole volumes, the last result counts. cvpr25: the rules of the CVPR
            2025 challenge. paper: crop around the truth and best of the clicks, as the published
            scripts; an oracle upper bound.
        clicks: Clicks per structure.
        policy: Where clicks of the protocol clicks land: at the centre of the largest mistake,
            uniformly in the mistakes, or near the centre.
        seeds: Simulated users; by default 5 for random and jitter, else 1.
        components: Every connected part of a structure is a target, in its place.
        min_voxels: Smaller structures are no targets; by default 30, for cvpr25 1.
        limit_targets: At most so many targets per case, evenly spread over its structures.
    """

    protocol: Literal["clicks", "cvpr25", "paper"] = "clicks"
    clicks: int = 5
    policy: Literal["centre", "random", "jitter"] | None = None
    seeds: int | None = None
    components: Flag = False
    min_voxels: int | None = None
    limit_targets: int | None = None

    def resolve(self) -> InteractionProtocol:
        """Return the protocol with its defaults filled in.

        Raises:
            UsageError: The policy or the number of seeds has no meaning in the protocol.
            ConfigError: A number is out of range.
        """
        from fastsam3d.eval.protocol import InteractionProtocol

        if self.policy is not None and self.protocol != "clicks":
            raise UsageError(f"--policy is for --protocol clicks; {self.protocol} has its own.")
        draws = self.policy in {"random", "jitter"}
        seeds = self.seeds if self.seeds is not None else RANDOM_SEEDS if draws else 1
        if seeds > 1 and not draws and self.protocol == "clicks":
            raise UsageError("--seeds is for clicks that are drawn; add --policy random or jitter.")
        smallest = CHALLENGE_MIN_VOXELS if self.protocol == "cvpr25" else MIN_VOXELS
        return InteractionProtocol(
            name=self.protocol,
            num_clicks=self.clicks,
            # "random" of the simulator stays in the largest mistake.
            placement="uniform" if self.policy == "random" else self.policy or "centre",
            seeds=tuple(range(seeds)),
            use_components=self.components,
            min_voxels=smallest if self.min_voxels is None else self.min_voxels,
            max_targets=self.limit_targets,
        )


@Parameter(name="*", group="Cases")
@dataclass(frozen=True, kw_only=True)
class CaseOptions:
    """Which cases, and what in them is a structure.

    Attributes:
        split: Only the cases of this split: of manifest.csv, or Ts or Tr of an nnU-Net folder.
        subject: Regular expression; what it finds in a case name tells who was scanned.
        truth: Folder of the .npz files with the truth, where the cases' files have none.
        npz_spacing: Which axis comes first in the spacing of .npz files.
        regions: CSV table of structures that are unions of labels (source, region, labels: names
            or values, with ; between them), in place of the single labels of these sources.
        limit: Only the first cases.
    """

    split: str | None = None
    subject: str | None = None
    truth: Path | None = None
    npz_spacing: Literal["xyz", "zyx"] = "xyz"
    regions: Path | None = None
    limit: int | None = None


@Parameter(name="*", group="Engine")
@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What is evaluated, and where it computes.

    Attributes:
        model: Name of a model, path of a .safetensors file, or a baseline: ball, region_growing,
            random_walker, watershed, sam2d or unet (see the documentation).
        device: Where to compute.
        zero_image: Hide the image from the model: what clicks alone achieve.
        mirrors: Average a model's answers over so many mirror images: 1, 2, 4 or 8.
        jobs: Processes that share the cases, and the threads.
    """

    model: str = "hr_s"
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    zero_image: Flag = False
    mirrors: int = 1
    jobs: int = 1


def evaluate(
    cases: Path,
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    groups: Path | None = None,
    protocol: ProtocolOptions = ProtocolOptions(),
    source: CaseOptions = CaseOptions(),
    engine: EngineOptions = EngineOptions(),
) -> None:
    """Measure a model or baseline on cases with known truth, by simulated clicks.

    Started again with the same options it goes on where it was stopped.

    Args:
        cases: Folder of CASE/image.nii.gz and label.nii.gz, nnU-Net folder, folder of CVPR 2025
            challenge .npz files, or case pack.
        output: Folder for results.jsonl, summary.json, report.html and more.
        groups: CSV table of what was seen in training (source, structure, source_seen,
            structure_seen: yes or no), to tell seen from unseen in the summary.
        protocol: How it is measured.
        source: Which cases.
        engine: What is measured.
    """
    from fastsam3d.eval.evaluation import EvaluationOptions
    from fastsam3d.eval.groups import read_groups
    from fastsam3d.eval.regions import read_regions

    options = EvaluationOptions(
        cases=cases,
        model=engine.model,
        protocol=protocol.resolve(),
        device=engine.device,
        zero_image=engine.zero_image,
        mirrors=engine.mirrors,
        split=source.split,
        truth=source.truth,
        subject_pattern=source.subject,
        spacing_order=source.npz_spacing,
        regions=None if source.regions is None else read_regions(source.regions),
        limit=source.limit,
    )
    seen = None if groups is None else read_groups(groups)
    outcome = _run(options, output, seen, jobs=engine.jobs)
    _tell(options, outcome, output)
    _draw(output)


def _run(
    options: EvaluationOptions, output: Path, groups: SeenGroups | None, *, jobs: int
) -> Outcome:
    from fastsam3d.eval.evaluation import evaluate as run_evaluation

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("cases"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console) as bar:
        task = bar.add_task("Finding cases", total=None)

        def show(progress: Progress) -> None:
            text = f"{progress.targets_done} targets"
            if progress.rows:
                last = progress.rows[-1]
                text += f", {last.case} {last.structure}: Dice {last.dice:.2f}"
            if progress.skipped is not None:
                console.print(f"Skipped {progress.skipped}", highlight=False, markup=False)
            bar.update(
                task, description=text, total=progress.num_cases, completed=progress.cases_done
            )

        return run_evaluation(
            options,
            output,
            command=["fastsam3d", *sys.argv[1:]],
            jobs=jobs,
            groups=groups,
            on_progress=show,
        )


def _tell(options: EvaluationOptions, outcome: Outcome, output: Path) -> None:
    from fastsam3d.eval.protocol import PROTOCOLS
    from fastsam3d.eval.summary import table

    print(f"{options.model}: {PROTOCOLS[options.protocol.name].label}")
    print(table(outcome.summary))
    for name, reason in outcome.skipped.items():
        print(f"Skipped {name}: {reason}")
    print(f"Results: {output}")


def _draw(output: Path) -> None:
    """Draw the report last: the figures are on disk and on screen if it cannot be drawn."""
    with show_progress("Drawing the report"):
        from fastsam3d.eval.report import write_report

        page = write_report(output)
    print(f"Report: {page}")
