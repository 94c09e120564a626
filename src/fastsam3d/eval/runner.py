"""Run a segmenter over cases, click by click, and keep one row per click.

The segmenter sees the volume and the points; the truth stays here. Rows hold the result after
each click as it was, never the best so far.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fastsam3d.eval.metrics import dice
from fastsam3d.prompts.simulate import next_click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from fastsam3d.eval.cases import EvalCase
    from fastsam3d.eval.protocol import InteractionProtocol
    from fastsam3d.prompts import Point
    from fastsam3d.segmenter import Prediction
    from fastsam3d.volume import Volume


class ClickSegmenter(Protocol):
    """The part of `fastsam3d.segmenter.Segmenter` that an evaluation uses."""

    def set_volume(self, volume: Volume) -> None:
        """Start anew on a volume."""
        ...

    def reset(self) -> None:
        """Forget all clicks and keep the volume."""
        ...

    def add_point(self, point: Point) -> Prediction:
        """Add a click and segment."""
        ...


@dataclass(frozen=True, kw_only=True)
class Row:
    """The result after one click.

    Attributes:
        case: Case name.
        source: Provenance group of the case.
        label: Label value of the structure.
        structure: Its name.
        voxels: Its size.
        round: 1 for the first click.
        dice: Of the mask after this click.
        position: Voxel i, j, k of this click; None when the mask was perfect and no click was made.
        positive: Whether the click was on the structure.
        encode_ms: Cutting and encoding, as the segmenter reports it.
        click_ms: Wall time of the whole answer less `encode_ms`.
        spacing_mm: Side of the voxels in which the model saw the ROI.
        quality: The model's own estimate.
    """

    case: str
    source: str
    label: int
    structure: str
    voxels: int
    round: int
    dice: float
    position: tuple[int, int, int] | None
    positive: bool | None
    encode_ms: float
    click_ms: float
    spacing_mm: float
    quality: float


def run(
    segmenter: ClickSegmenter,
    cases: Iterable[EvalCase],
    protocol: InteractionProtocol,
    *,
    on_target: Callable[[list[Row]], None] | None = None,
) -> list[Row]:
    """Segment every target of every case with simulated clicks.

    Args:
        segmenter: Gets `EvalCase.volume` and points only.
        cases: Volumes with truth.
        protocol: Clicks and targets.
        on_target: Called with the rows of each finished target, for progress.

    Returns:
        One row per case, structure and click; a perfect mask is carried on without clicks.
    """
    rows: list[Row] = []
    for case in cases:
        segmenter.set_volume(case.volume)
        for label in protocol.targets(case):
            segmenter.reset()
            found = run_target(segmenter, case, label, protocol)
            rows.extend(found)
            if on_target is not None:
                on_target(found)
    return rows


def run_target(
    segmenter: ClickSegmenter, case: EvalCase, label: int, protocol: InteractionProtocol
) -> list[Row]:
    """Segment one structure of the volume that the segmenter holds already."""
    truth = case.labels == label
    spacing = case.volume.geometry.spacing
    rng = np.random.default_rng([protocol.seed, label, *case.name.encode()])
    answer = _Answer(mask=np.zeros(case.volume.shape, dtype=np.uint8))
    rows: list[Row] = []
    for number in range(1, protocol.num_clicks + 1):
        click = next_click(answer.mask, truth, spacing, placement=protocol.placement, rng=rng)
        answer = _ask(segmenter, click, answer)
        rows.append(
            Row(
                case=case.name,
                source=case.source,
                label=label,
                structure=case.label_names.get(label, f"label {label}"),
                voxels=int(np.count_nonzero(truth)),
                round=number,
                dice=dice(answer.mask, truth),
                position=_position(click),
                positive=None if click is None else click.positive,
                encode_ms=answer.encode_ms,
                click_ms=answer.click_ms,
                spacing_mm=answer.spacing_mm,
                quality=answer.quality,
            )
        )
    return rows


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """The mask after a click and what it took; zeros before the first."""

    mask: NDArray[Any]
    encode_ms: float = 0.0
    click_ms: float = 0.0
    spacing_mm: float = 0.0
    quality: float = 0.0


def _ask(segmenter: ClickSegmenter, click: Point | None, before: _Answer) -> _Answer:
    if click is None:
        return replace(before, encode_ms=0.0, click_ms=0.0)
    begin = time.perf_counter()
    prediction = segmenter.add_point(click)
    wall_ms = (time.perf_counter() - begin) * 1000.0
    return _Answer(
        mask=prediction.mask.array,
        encode_ms=prediction.encode_ms,
        click_ms=max(0.0, wall_ms - prediction.encode_ms),
        spacing_mm=prediction.spacing_mm,
        quality=prediction.predicted_quality,
    )


def _position(click: Point | None) -> tuple[int, int, int] | None:
    if click is None:
        return None
    i, j, k = (int(value) for value in click.position)
    return (i, j, k)
