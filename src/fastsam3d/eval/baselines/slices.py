"""A 2-D promptable model carried through a volume slice by slice.

Slices lie across the axis of the largest spacing (of equal ones, that nearest to head-feet). Every
slice with a positive click is segmented from its own clicks. From there each neighbour is asked in
turn, upwards and downwards, with the box around the slice before, a point deep in it and the
clicks of its own, until the object ends or a slice that was clicked is met.

Shape legend: R, C rows and columns of a slice, in the file's axis order.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from fastsam3d.eval.baselines.base import Baseline, Clicks, LocalMask
from fastsam3d.volume import Region

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastsam3d.volume import Volume

    BoolSlice = NDArray[np.bool_]

LEAST_QUALITY = 0.5
LEAST_OVERLAP = 0.3
BOX_MARGIN = 0.05
MAX_EMBEDDINGS = 64
LOW_PERCENTILE, HIGH_PERCENTILE = 0.5, 99.5


@dataclass(frozen=True, eq=False, kw_only=True)
class SlicePrompts:
    """Prompts on one slice, in pixels (centres are integers).

    Attributes:
        points: Row and column of the clicks, (N, 2); N may be 0.
        is_positive: Their signs, (N,).
        box: First row, first column, last row, last column, or None.
    """

    points: NDArray[np.float64]
    is_positive: NDArray[np.bool_]
    box: tuple[float, float, float, float] | None = None


class SliceModel(Protocol):
    """A promptable 2-D model."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know of every answer."""
        ...

    def encode(self, image: NDArray[np.float32]) -> Any:
        """Embed a slice (R, C) with intensities of 0 to 1."""
        ...

    def decode(
        self, embedding: Any, shape: tuple[int, int], prompts: SlicePrompts
    ) -> tuple[BoolSlice, float]:
        """Return a mask (R, C) and its predicted quality."""
        ...


@dataclass(eq=False)
class _Stack:
    """Slices of one volume, their embeddings at hand, and the time that these took."""

    model: SliceModel
    slices: NDArray[Any]
    window: tuple[float, float]
    embeddings: OrderedDict[int, Any] = field(default_factory=OrderedDict[int, Any])
    encode_ms: float = 0.0

    def decode(self, index: int, prompts: SlicePrompts) -> tuple[BoolSlice, float]:
        shape = (self.slices.shape[1], self.slices.shape[2])
        return self.model.decode(self._embedding(index), shape, prompts)

    def _embedding(self, index: int) -> Any:
        if index not in self.embeddings:
            begin = time.perf_counter()
            low, high = self.window
            image = (self.slices[index].astype(np.float32) - low) / max(high - low, 1e-6)
            self.embeddings[index] = self.model.encode(image.clip(0.0, 1.0))
            self.encode_ms += 1e3 * (time.perf_counter() - begin)
            if len(self.embeddings) > MAX_EMBEDDINGS:
                self.embeddings.popitem(last=False)
        self.embeddings.move_to_end(index)
        return self.embeddings[index]


class SliceBySlice(Baseline):
    """Carries a 2-D model's masks from the clicked slices through the volume.

    The quality is the mean of those of the slices.

    Args:
        model: The 2-D model.
        max_slices: How far to go from a clicked slice in either direction.
        is_for_time: Go that far whatever the masks, as random weights know no end of an object.
    """

    def __init__(
        self, model: SliceModel, *, max_slices: int = 400, is_for_time: bool = False
    ) -> None:
        super().__init__()
        self._is_for_time = is_for_time
        self._model = model
        self._max_slices = max_slices
        self._axis = 0
        self._stack: _Stack | None = None

    def set_volume(self, volume: Volume) -> None:
        """Start anew on a volume, without prompts."""
        super().set_volume(volume)
        self._axis = slice_axis(volume)
        low, high = np.percentile(volume.array, [LOW_PERCENTILE, HIGH_PERCENTILE])
        slices = np.moveaxis(volume.array, self._axis, 0)
        self._stack = _Stack(self._model, slices, (float(low), float(high)))

    def _segment(self, volume: Volume, clicks: Clicks) -> LocalMask:
        stack = self._stack
        assert stack is not None  # noqa: S101 - set with the volume
        before = stack.encode_ms
        found: dict[int, tuple[BoolSlice, float]] = {}
        starts = sorted({int(voxel[self._axis]) for voxel in clicks.positive})
        for start in starts:
            found[start] = stack.decode(start, self._prompts_on(start, clicks))
        for start in starts:
            for step in (1, -1):
                self._carry(stack, found, start, step, clicks)
        mask = np.zeros(volume.shape, dtype=np.bool_)
        for index, (part, _) in found.items():
            np.moveaxis(mask, self._axis, 0)[index] = part
        whole = Region((0, 0, 0), volume.shape)
        return LocalMask(
            region=whole,
            array=mask,
            looked=whole,
            spacing_mm=volume.geometry.spacing[self._axis],
            quality=float(np.mean([quality for _, quality in found.values()])),
            encode_ms=stack.encode_ms - before,
            warnings=self._model.warnings,
        )

    def _carry(
        self,
        stack: _Stack,
        found: dict[int, tuple[BoolSlice, float]],
        start: int,
        step: int,
        clicks: Clicks,
    ) -> None:
        """Ask slice after slice from `start` on and add their masks to `found`."""
        first, last = self._slices_allowed(clicks, len(stack.slices))
        before = found[start][0]
        for number in range(1, self._max_slices + 1):
            index = start + step * number
            if index in found or not first <= index < last:
                return
            if not before.any():
                if not self._is_for_time:
                    return
                before = np.ones_like(before)
            own = self._prompts_on(index, clicks)
            part, quality = stack.decode(index, with_slice_before(own, before))
            if not self._is_for_time and _has_ended(part, before, quality):
                return
            found[index] = (part, quality)
            before = part

    def _prompts_on(self, index: int, clicks: Clicks) -> SlicePrompts:
        """Return the clicks of a slice, and the box where it passes through."""
        axes = [axis for axis in range(3) if axis != self._axis]
        is_here = np.floor(clicks.positions[:, self._axis] + 0.5) == index
        box = None
        if clicks.box is not None and self._is_in(clicks.box, index):
            (r0, c0), (r1, c1) = ([corner[a] for a in axes] for corner in _corners(clicks.box))
            box = (float(r0), float(c0), float(r1 - 1), float(c1 - 1))
        return SlicePrompts(
            points=clicks.positions[is_here][:, axes],
            is_positive=clicks.is_positive[is_here],
            box=box,
        )

    def _slices_allowed(self, clicks: Clicks, count: int) -> tuple[int, int]:
        if clicks.box is None:
            return 0, count
        return clicks.box.start[self._axis], clicks.box.stop[self._axis]

    def _is_in(self, box: Region, index: int) -> bool:
        return box.start[self._axis] <= index < box.stop[self._axis]


def slice_axis(volume: Volume) -> int:
    """Return the axis across which slices lie: of the largest spacing, else head-feet."""
    spacing, codes = volume.geometry.spacing, volume.geometry.orientation
    largest = [axis for axis in range(3) if spacing[axis] > 0.99 * max(spacing)]
    head_feet = [axis for axis in largest if codes[axis] in "SI"]
    return (head_feet or largest)[0]


def with_slice_before(own: SlicePrompts, before: BoolSlice) -> SlicePrompts:
    """Return the prompts of a slice with box and deepest point of the mask on its neighbour.

    Args:
        own: Clicks on the slice.
        before: Mask (R, C) of the neighbour, not empty.
    """
    from scipy import ndimage  # noqa: PLC0415 - late, as all heavy imports here

    rows, columns = (np.flatnonzero(before.any(axis=axis)) for axis in (1, 0))
    height, width = BOX_MARGIN * len(rows), BOX_MARGIN * len(columns)
    box = (rows[0] - height, columns[0] - width, rows[-1] + height, columns[-1] + width)
    depth = cast("Any", ndimage).distance_transform_edt(np.pad(before, 1))
    deepest = np.array(np.unravel_index(int(depth.argmax()), depth.shape), dtype=np.float64) - 1
    return SlicePrompts(
        points=np.concatenate([deepest[None], own.points]),
        is_positive=np.concatenate([[True], own.is_positive]).astype(np.bool_),
        box=own.box or (float(box[0]), float(box[1]), float(box[2]), float(box[3])),
    )


def _corners(box: Region) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    return box.start, box.stop


def _has_ended(part: BoolSlice, before: BoolSlice, quality: float) -> bool:
    return quality < LEAST_QUALITY or _overlap(part, before) < LEAST_OVERLAP


def _overlap(a: BoolSlice, b: BoolSlice) -> float:
    union = int(np.count_nonzero(a | b))
    return int(np.count_nonzero(a & b)) / union if union else 0.0
