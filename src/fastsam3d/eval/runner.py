"""Play a segmenter against a simulated user, round by round.

The segmenter sees the volume and the prompts; the truth stays here. A round holds the result as it
was, never the best so far. Work follows the boxes of truth and mask, not the size of the volume.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from fastsam3d.eval.boxed import BoxedMask, boxed_dice
from fastsam3d.eval.protocol import user_rng
from fastsam3d.prompts import Point
from fastsam3d.prompts.simulate import next_click

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fastsam3d.eval.cases import EvalCase
    from fastsam3d.eval.protocol import InteractionProtocol, Target
    from fastsam3d.segmenter import Prediction
    from fastsam3d.volume import Volume

Clicker = Callable[[NDArray[Any], NDArray[Any]], Point | None]
"""Places the next click given mask and truth in a box that holds both; None without a mistake."""


class ClickSegmenter(Protocol):
    """The part of `fastsam3d.segmenter.Segmenter` that an evaluation uses.

    State must be replaced, not changed in place, as in `fastsam3d.session.Session`: `copy.copy`
    then gives a second segmenter on the same volume whose prompts are its own.
    """

    def set_volume(self, volume: Volume) -> None:
        """Start anew on a volume."""
        ...

    def reset(self) -> None:
        """Forget all prompts and keep the volume."""
        ...

    def add_point(self, point: Point) -> Prediction:
        """Add a click and segment."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Round:
    """One prompt and its answer.

    Attributes:
        number: 1 for the first click; 0 for a box.
        mask: The segmenter's mask after this prompt.
        prompt: "point", "box" or "none".
        click: The click, on the grid of `mask`; None unless the prompt is a point.
        encode_ms: Cutting and encoding, as the segmenter reports it.
        click_ms: Wall time of the whole answer less `encode_ms`.
        spacing_mm: Side of the voxels in which the model saw the ROI.
        quality: The model's own estimate.
    """

    number: int = 0
    mask: BoxedMask = field(repr=False)
    prompt: str = "none"
    click: Point | None = None
    encode_ms: float = 0.0
    click_ms: float = 0.0
    spacing_mm: float = 0.0
    quality: float = 0.0

    @property
    def position(self) -> tuple[int, int, int] | None:
        """Voxel of the click; None without one."""
        if self.click is None:
            return None
        i, j, k = (int(value) for value in self.click.position)
        return (i, j, k)

    @property
    def positive(self) -> bool | None:
        """Whether the click was on the structure; None without one."""
        return None if self.click is None else self.click.positive


def play_clicks(
    segmenter: ClickSegmenter, truth: BoxedMask, clicker: Clicker, *, num_clicks: int
) -> Iterator[Round]:
    """Click until `num_clicks` are made; a perfect mask is carried on without clicks.

    Args:
        segmenter: Holds the volume and no prompts.
        truth: Structure on the grid of that volume; only the clicks of `clicker` tell of it.
        clicker: Places clicks.
        num_clicks: Number of rounds.

    Yields:
        The rounds 1, 2, ... as they happen.
    """
    state = Round(mask=BoxedMask.empty(truth.shape))
    for number in range(1, num_clicks + 1):
        click = click_in_box(state.mask, truth, clicker)
        state = answer_point(segmenter, click, before=state, number=number)
        yield state


def click_in_box(mask: BoxedMask, truth: BoxedMask, clicker: Clicker) -> Point | None:
    """Place a click by looking at the smallest box that holds mask and truth."""
    region = mask.region.union(truth.region)
    if region.is_empty:
        return None
    click = clicker(mask.crop(region), truth.crop(region))
    if click is None:
        return None
    at = [inside + first for inside, first in zip(click.position, region.start, strict=True)]
    return Point.voxel(at, positive=click.positive)


def answer_point(
    segmenter: ClickSegmenter, click: Point | None, *, before: Round, number: int
) -> Round:
    """Return the round of a click; without a click the mask stays and takes no time."""
    if click is None:
        return replace(
            before, number=number, prompt="none", click=None, encode_ms=0.0, click_ms=0.0
        )
    answer = timed(lambda: segmenter.add_point(click), before.mask.shape)
    return replace(answer, number=number, prompt="point", click=click)


def timed(ask: Callable[[], Prediction], shape: tuple[int, int, int]) -> Round:
    """Ask a segmenter and keep its mask and the time that it took."""
    begin = time.perf_counter()
    prediction = ask()
    wall_ms = (time.perf_counter() - begin) * 1000.0
    return Round(
        mask=BoxedMask.of(shape, prediction.region, prediction.region_mask),
        encode_ms=prediction.encode_ms,
        click_ms=max(0.0, wall_ms - prediction.encode_ms),
        spacing_mm=prediction.spacing_mm,
        quality=prediction.predicted_quality,
    )


def protocol_clicker(
    protocol: InteractionProtocol, case: EvalCase, target: Target, seed: int
) -> Clicker:
    """Return the simulated user of the protocol "clicks" for one target."""
    rng = user_rng(seed, case, target)
    spacing = case.volume.geometry.spacing
    return lambda mask, truth: next_click(
        mask, truth, spacing, placement=protocol.placement, rng=rng
    )


@dataclass(frozen=True, kw_only=True)
class Row:
    """The result after one click, as `python -m fastsam3d.eval.dev` keeps it.

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
    """Segment every target of every case with simulated clicks; Dice only, in memory.

    Args:
        segmenter: Gets `EvalCase.volume` and points only.
        cases: Volumes with truth.
        protocol: Clicks and targets, of the protocol "clicks" with one seed.
        on_target: Called with the rows of each finished target, for progress.

    Returns:
        One row per case, structure and click; a perfect mask is carried on without clicks.
    """
    rows: list[Row] = []
    for case in cases:
        segmenter.set_volume(case.volume)
        for target in protocol.targets(case):
            segmenter.reset()
            clicker = protocol_clicker(protocol, case, target, protocol.seeds[0])
            played = play_clicks(segmenter, target.truth, clicker, num_clicks=protocol.num_clicks)
            found = [_row(case, target, state) for state in played]
            rows.extend(found)
            if on_target is not None:
                on_target(found)
    return rows


def _row(case: EvalCase, target: Target, state: Round) -> Row:
    return Row(
        case=case.name,
        source=case.source,
        label=target.label,
        structure=case.structure(target.label),
        voxels=target.truth.num_voxels,
        round=state.number,
        dice=boxed_dice(state.mask, target.truth),
        position=state.position,
        positive=state.positive,
        encode_ms=state.encode_ms,
        click_ms=state.click_ms,
        spacing_mm=state.spacing_mm,
        quality=state.quality,
    )
