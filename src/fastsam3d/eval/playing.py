"""Play one case: read it once, play what is pending, keep a picture of every target.

This is what a worker process does; `fastsam3d.eval.evaluation` writes the results.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastsam3d.errors import DatasetError, GeometryError, VolumeReadError
from fastsam3d.eval.snapshot import make_snapshot, save_snapshot, snapshot_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fastsam3d.eval.evaluation import EvaluationOptions
    from fastsam3d.eval.folders import CaseFile
    from fastsam3d.eval.protocol import InteractionProtocol
    from fastsam3d.eval.results import ResultRow
    from fastsam3d.eval.runner import ClickSegmenter
    from fastsam3d.eval.scoring import PlayedTarget

UNREADABLE = (DatasetError, GeometryError, VolumeReadError)
"""A case with such an error is recorded and skipped by name; any other error ends the run."""


@dataclass(frozen=True, kw_only=True)
class CaseTask:
    """One case to play.

    Attributes:
        case: Where it is.
        protocol: How to play it.
        done: Label, component and seed of its targets that have their rows.
        snapshots: Folder for pictures.
    """

    case: CaseFile
    protocol: InteractionProtocol
    done: frozenset[tuple[int, int, int]]
    snapshots: Path


@dataclass(frozen=True, kw_only=True)
class RowsReady:
    """Targets that were played together, to be written together."""

    rows: tuple[ResultRow, ...]


@dataclass(frozen=True, kw_only=True)
class CaseDone:
    """A case with nothing left to play; `skipped` says why it could not be read."""

    case: str
    skipped: str | None = None


Event = RowsReady | CaseDone


@dataclass(frozen=True, kw_only=True)
class SegmenterSpec:
    """Makes a segmenter by name, in any process.

    Attributes:
        model: For `fastsam3d.eval.segmenters.create_segmenter`.
        device: The same.
        zero_image: The same.
        mirrors: The same.
        spacing_mm: The same; ignored for baselines, which have no choice of spacing.
    """

    model: str
    device: str = "cpu"
    zero_image: bool = False
    mirrors: int = 1
    spacing_mm: float | None = None

    @classmethod
    def of(cls, options: EvaluationOptions) -> SegmenterSpec:
        """Return the spec of a run: the protocol "paper" fixes the spacing of models."""
        from fastsam3d.eval.protocol_paper import CROP_SPACING_MM  # noqa: PLC0415

        is_fixed = options.protocol.name == "paper"
        return cls(
            model=options.model,
            device=options.device,
            zero_image=options.zero_image,
            mirrors=options.mirrors,
            spacing_mm=CROP_SPACING_MM if is_fixed else None,
        )

    def __call__(self) -> ClickSegmenter:
        """Make the segmenter."""
        from fastsam3d.eval.segmenters import BASELINES, create_segmenter  # noqa: PLC0415

        is_baseline = self.model.partition(":")[0] in BASELINES
        return create_segmenter(
            self.model,
            device=self.device,
            zero_image=self.zero_image,
            mirrors=self.mirrors,
            spacing_mm=None if is_baseline else self.spacing_mm,
        )


def play_task(segmenter: ClickSegmenter, task: CaseTask) -> Iterator[Event]:
    """Play a case.

    Args:
        segmenter: Used for one case after the other.
        task: What to play.

    Yields:
        Rows as they come, and at the end that the case is done.
    """
    try:
        case = task.case.read()
    except UNREADABLE as error:
        yield CaseDone(case=task.case.name, skipped=str(error))
        return
    protocol: Any = import_module(f"fastsam3d.eval.protocol_{task.protocol.name}")
    units: Iterator[list[PlayedTarget]] = protocol.play_case(
        segmenter, case, task.protocol, done=task.done
    )
    for unit in units:
        for played in unit:
            _save_picture(played, task.snapshots)
        yield RowsReady(rows=tuple(row for played in unit for row in played.rows))
    yield CaseDone(case=task.case.name)


def _save_picture(played: PlayedTarget, folder: Path) -> None:
    snapshot = make_snapshot(
        played.volume, played.truth.whole(), played.mask.whole(), played.clicks
    )
    save_snapshot(folder / snapshot_name(played.rows[-1].target), snapshot)
