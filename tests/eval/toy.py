"""A toy case and segmenters whose answers are known.

The image tells the labels (50 per label value), so that a segmenter can be perfect without truth.
"""

from dataclasses import replace

import numpy as np

from fastsam3d.eval.cases import EvalCase
from fastsam3d.prompts import Box, Point
from fastsam3d.segmenter import Prediction
from fastsam3d.volume import Geometry, Region, Volume


def make_case(name: str = "clinic__a", *, seed: int = 0) -> EvalCase:
    rng = np.random.default_rng(seed)
    labels = np.zeros((18, 16, 10), dtype=np.uint8)
    labels[2:9, 2:9, 2:8] = 1
    labels[11:16, 5:12, 1:9] = 4
    labels[0, 15, 9] = 7
    array = (labels * 50 + rng.integers(0, 9, labels.shape)).astype(np.int16)
    geometry = Geometry(labels.shape, np.diag([1.0, 1.0, 1.5, 1.0]))
    return EvalCase(
        name=name,
        source=name.split("__", maxsplit=1)[0],
        volume=Volume(array, geometry),
        labels=labels,
        label_names={1: "liver", 4: "spleen"},
        licence="CC0",
    )


class ThresholdSegmenter:
    """Marks all voxels about as bright as the voxel clicked first; remembers what it was given."""

    def __init__(self) -> None:
        self.volume: Volume | None = None
        self.points: list[Point] = []
        self.given: list[object] = []
        self.num_resets = 0

    def set_volume(self, volume: Volume) -> None:
        self.volume = volume
        self.given.append(volume)

    def reset(self) -> None:
        self.points = []
        self.num_resets += 1

    def add_point(self, point: Point) -> Prediction:
        assert self.volume is not None
        self.points.append(point)
        self.given.append(point)
        i, j, k = (int(v) for v in self.points[0].position)
        array = self.volume.array
        mask = (np.abs(array.astype(int) - int(array[i, j, k])) < 20).astype(np.uint8)
        whole = Region((0, 0, 0), mask.shape)
        return Prediction(
            volume=self.volume,
            region=whole,
            region_mask=mask,
            changed=whole,
            roi=whole,
            spacing_mm=1.5,
            predicted_quality=0.7,
            encode_ms=2.0 if len(self.points) == 1 else 0.0,
            click_ms=1.0,
        )


class BoxedThreshold(ThresholdSegmenter):
    """The same, which also starts from the middle of a box; prompts are replaced, not changed."""

    def add_point(self, point: Point) -> Prediction:
        self.points = list(self.points)
        return super().add_point(point)

    def add_box(self, box: Box) -> Prediction:
        region = box.region
        middle = [(a + b - 1) // 2 for a, b in zip(region.start, region.stop, strict=True)]
        return self.add_point(Point.voxel(middle))


class ShiftedThreshold(ThresholdSegmenter):
    """Perfect, but for a shift by one voxel along i."""

    def add_point(self, point: Point) -> Prediction:
        answer = super().add_point(point)
        return replace(answer, region_mask=np.roll(answer.region_mask, 1, axis=0))


class NothingSegmenter(ThresholdSegmenter):
    """Never finds anything."""

    def add_point(self, point: Point) -> Prediction:
        answer = super().add_point(point)
        return replace(answer, region_mask=np.zeros_like(answer.region_mask))
