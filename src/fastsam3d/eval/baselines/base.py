"""What all baselines share: prompts in order, undo, timing; they differ in one function.

A baseline keeps no state between prompts but the volume: its answer is a function of the volume
and the prompts so far. Shape legend: N clicks; I, J, K voxels of the file's grid.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastsam3d.errors import PromptError, SessionStateError
from fastsam3d.prompts import Box, Point, PromptSet
from fastsam3d.segmenter import EMPTY_REGION, Prediction
from fastsam3d.volume import Mask, Region

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from fastsam3d.prompts import MaskPrompt
    from fastsam3d.volume import Volume


@dataclass(frozen=True, eq=False, kw_only=True)
class Clicks:
    """Prompts on the voxel grid of a volume.

    Attributes:
        positions: Clicks, oldest first, float64 (N, 3), voxel i, j, k; N may be 0.
        is_positive: Their signs, shape (N,).
        box: The latest box, clipped to the volume; None without one.
    """

    positions: NDArray[np.float64]
    is_positive: NDArray[np.bool_]
    box: Region | None = None

    @property
    def positive(self) -> NDArray[np.intp]:
        """Voxels clicked as object, (P, 3); the box's centre where there is a box alone."""
        chosen = self.positions[self.is_positive]
        if not len(chosen) and self.box is not None:
            chosen = (np.add(self.box.start, self.box.stop)[None] - 1) / 2
        return _nearest(chosen)

    @property
    def negative(self) -> NDArray[np.intp]:
        """Voxels clicked as background, (Q, 3)."""
        return _nearest(self.positions[~self.is_positive])


@dataclass(frozen=True, eq=False, kw_only=True)
class LocalMask:
    """A mask in a box of the volume.

    Attributes:
        region: The box, inside the volume.
        array: bool or uint8, shape `region.shape`.
        looked: Box of the volume that was looked at.
        spacing_mm: Side of the voxels in which it was seen; 0 where none is meant.
        quality: The baseline's own estimate of IoU; 0 where it has none.
        encode_ms: Part of the time that later clicks in the same place would not take.
        warnings: What the user should know, a sentence each.
    """

    region: Region
    array: NDArray[np.bool_] | NDArray[np.uint8]
    looked: Region
    spacing_mm: float = 0.0
    quality: float = 0.0
    encode_ms: float = 0.0
    warnings: tuple[str, ...] = ()


class Baseline(ABC):
    """A `fastsam3d.segmenter.Segmenter` around one function of volume and clicks."""

    def __init__(self) -> None:
        self._volume: Volume | None = None
        self._prompts = PromptSet()
        self._shown = EMPTY_REGION

    @abstractmethod
    def _segment(self, volume: Volume, clicks: Clicks) -> LocalMask:
        """Return the mask for all clicks; called with at least one positive click or a box."""

    @property
    def prompts(self) -> PromptSet:
        """The prompts so far, oldest first."""
        return self._prompts

    def set_volume(self, volume: Volume) -> None:
        """Start anew on a volume, without prompts."""
        self._volume = volume
        self.reset()

    def add_point(
        self, point: Point | Iterable[float], *, positive: bool | None = None
    ) -> Prediction:
        """Add a click and segment; plain numbers are voxel indices i, j, k.

        Raises:
            SessionStateError: No volume was set.
            PromptError: The point lies outside of the volume.
        """
        if not isinstance(point, Point):
            point = Point.voxel(point, positive=positive is not False)
        return self.predict(self._prompts.add(point))

    def add_box(self, box: Box) -> Prediction:
        """Add a box around the object and segment; the latest box counts.

        Raises:
            SessionStateError: No volume was set.
            PromptError: The box lies outside of the volume.
        """
        return self.predict(self._prompts.add(box))

    def add_mask(self, mask: MaskPrompt | Mask) -> Prediction:
        """Refuse: baselines start from clicks and boxes.

        Raises:
            PromptError: Always.
        """
        name, kind = type(self).__name__, type(mask).__name__
        raise PromptError(f"{name} takes points and boxes, got a {kind}; give a point.")

    def predict(self, prompts: PromptSet) -> Prediction:
        """Replace all prompts and segment.

        Raises:
            SessionStateError: No volume was set.
            PromptError: There is no prompt, a mask, or one outside of the volume.
        """
        if self._volume is None:
            raise SessionStateError("No volume is set; call set_volume first.")
        if not prompts.prompts:
            raise PromptError("There is no prompt to answer; add a point or a box.")
        if prompts.mask is not None:
            self.add_mask(prompts.mask)
        begin = time.perf_counter()
        clicks = clicks_on(self._volume, prompts)
        if clicks.is_positive.any() or clicks.box is not None:
            found = self._segment(self._volume, clicks)
        else:
            found = nothing()
        region, array = _tight(found)
        answer = Prediction(
            volume=self._volume,
            region=region,
            region_mask=array,
            changed=region.union(self._shown),
            roi=found.looked,
            spacing_mm=found.spacing_mm,
            predicted_quality=found.quality if not region.is_empty else 0.0,
            encode_ms=found.encode_ms,
            click_ms=max(0.0, 1e3 * (time.perf_counter() - begin) - found.encode_ms),
            warnings=found.warnings,
        )
        self._prompts, self._shown = prompts, region
        return answer

    def undo(self) -> Prediction | None:
        """Take the latest prompt back; None when no prompt is left.

        Raises:
            SessionStateError: There is nothing to take back.
        """
        if not self._prompts.prompts:
            raise SessionStateError("There is nothing to undo; call add_point first.")
        left = self._prompts.without_last()
        if left.prompts:
            return self.predict(left)
        self.reset()
        return None

    def reset(self) -> None:
        """Forget all prompts and keep the volume."""
        self._prompts, self._shown = PromptSet(), EMPTY_REGION


def clicks_on(volume: Volume, prompts: PromptSet) -> Clicks:
    """Return prompts on the grid of a volume; of contradicting clicks the latest counts.

    Raises:
        PromptError: A prompt lies outside of the volume.
    """
    given = prompts.to_voxel(volume.geometry)
    positions = np.array([p.position for p in given.points], dtype=np.float64).reshape(-1, 3)
    signs = np.array([p.positive for p in given.points], dtype=np.bool_)
    box = given.boxes[-1].region if given.boxes else None
    return Clicks(positions=positions, is_positive=signs, box=box)


def nothing() -> LocalMask:
    """Return the empty mask, the answer to clicks on background alone."""
    empty = np.zeros((0, 0, 0), dtype=np.bool_)
    return LocalMask(region=EMPTY_REGION, array=empty, looked=EMPTY_REGION)


def foreground_box(array: NDArray[np.bool_] | NDArray[np.uint8]) -> Region:
    """Return the smallest box that holds all foreground of an array; empty without any."""
    bounds: list[tuple[int, int]] = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        found = np.flatnonzero(array.any(axis=others))
        if not len(found):
            return EMPTY_REGION
        bounds.append((int(found[0]), int(found[-1]) + 1))
    (i0, i1), (j0, j1), (k0, k1) = bounds
    return Region((i0, j0, k0), (i1, j1, k1))


def _tight(found: LocalMask) -> tuple[Region, NDArray[np.uint8]]:
    inner = foreground_box(found.array)
    array = np.ascontiguousarray(found.array[inner.slices]).astype(np.uint8)
    array.setflags(write=False)
    return (EMPTY_REGION if inner.is_empty else inner.shift(found.region.start)), array


def _nearest(positions: NDArray[np.float64]) -> NDArray[np.intp]:
    return np.floor(positions + 0.5).astype(np.intp)
