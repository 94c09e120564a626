"""The truth reaches a segmenter through the places of clicks and through nothing else."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fastsam3d.eval import protocol_cvpr25, runner
from fastsam3d.eval.baselines import BallSegmenter
from fastsam3d.eval.cases import EvalCase
from fastsam3d.eval.protocol import InteractionProtocol
from fastsam3d.eval.protocol_clicks import play_case as play_clicks
from fastsam3d.eval.protocol_cvpr25 import play_case as play_challenge
from fastsam3d.prompts import Box, Point
from fastsam3d.session import Predictor, Session
from fastsam3d.volume import Region, Volume
from tests.eval.toy import BoxedThreshold, make_case
from tests.session.phantoms import BrightModel


class SpyModel(BrightModel):
    """Writes down every tensor that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, Any]] = []

    def encode_image(self, image: torch.Tensor) -> Any:
        self.seen.append(("image", image.numpy().tobytes()))
        return super().encode_image(image)

    def decode_masks(self, embedding: Any, points: Any, labels: Any, **given: Any) -> Any:
        tensors = {"points": points, "labels": labels, **given}
        for name, value in tensors.items():
            content = value.numpy().tobytes() if isinstance(value, torch.Tensor) else value
            self.seen.append((name, content))
        return super().decode_masks(embedding, points, labels, **given)


def played_tensors(
    play: Any, case: EvalCase, **options: Any
) -> tuple[dict[int, list[tuple[str, Any]]], list[tuple[str, Any]]]:
    """Play a case through a real session; what the model saw per label value, and in all."""
    model = SpyModel()
    session = Session(Predictor(model))
    protocol = InteractionProtocol(num_clicks=3, **options)
    by_label: dict[int, list[tuple[str, Any]]] = {}
    start = 0
    for unit in play(session, case, protocol):
        for played in unit:
            by_label[played.rows[0].label] = model.seen[start:]
        start = len(model.seen)
    return by_label, model.seen


def renamed(case: EvalCase, names: dict[int, int]) -> EvalCase:
    """The same structures under other label values."""
    labels = np.zeros_like(case.labels)
    for before, after in names.items():
        labels[case.labels == before] = after
    return replace(case, labels=labels)


def scattered(case: EvalCase) -> EvalCase:
    """Another truth altogether: the labels of the voxels in a random order."""
    labels = np.random.default_rng(5).permutation(case.labels.ravel())
    return replace(case, labels=labels.reshape(case.labels.shape))


def test_label_values_change_nothing_that_the_model_sees_of_a_structure() -> None:
    case = make_case()
    before, _ = played_tensors(play_clicks, case)
    after, _ = played_tensors(play_clicks, renamed(case, {1: 9, 4: 2}))
    assert list(before) == [1, 4]
    assert list(after) == [2, 9]

    def decoded(seen: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        # What was encoded for one structure stays at hand for the next; their order has changed.
        return [item for item in seen if item[0] != "image"]

    assert decoded(before[1]) == decoded(after[9]) != []
    assert decoded(before[4]) == decoded(after[2]) != []


@pytest.mark.parametrize("protocol", ["clicks", "cvpr25"])
def test_another_truth_with_the_same_clicks_changes_no_tensor_at_all(
    monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    def fixed_clicks() -> Iterator[Point]:
        rng = np.random.default_rng(1)
        while True:
            at = rng.integers(0, (18, 16, 10)).tolist()
            yield Point.voxel(at, positive=bool(rng.random() < 0.7))

    def tensors(case: EvalCase) -> list[tuple[str, Any]]:
        clicks = fixed_clicks()
        monkeypatch.setattr(runner, "click_in_box", lambda *_, **__: next(clicks))
        monkeypatch.setattr(protocol_cvpr25, "click_in_box", lambda *_, **__: next(clicks))
        play = play_challenge if protocol == "cvpr25" else play_clicks
        return played_tensors(play, case, name=protocol)[1]

    box = Region((2, 2, 2), (9, 9, 8))
    case = replace(make_case(), boxes={1: box, 4: box})
    seen = tensors(case)
    assert {name for name, _ in seen} >= {"image", "points", "labels"}
    assert tensors(scattered(case)) == seen
    # The spy would notice a change of the image, and of a click.
    brighter = case.volume.array.copy()
    brighter[5, 5, 5] += 1
    other = replace(case, volume=Volume(brighter, case.volume.geometry))
    assert tensors(other) != seen
    monkeypatch.setattr(
        np.random, "default_rng", lambda *_: np.random.Generator(np.random.PCG64(2))
    )
    assert tensors(case) != seen


@pytest.mark.parametrize("play", [play_clicks, play_challenge])
def test_a_segmenter_is_given_the_volume_points_and_boxes_only(play: Any) -> None:
    given: list[Any] = []

    class Spy(BoxedThreshold):
        def set_volume(self, volume: Volume) -> None:
            given.append(volume)
            super().set_volume(volume)

        def add_point(self, point: Point) -> Any:
            given.append(point)
            return super().add_point(point)

        def add_box(self, box: Box) -> Any:
            given.append(box)
            return super().add_box(box)

        def __setattr__(self, name: str, value: Any) -> None:
            assert name in {"volume", "points", "given", "num_resets"}, "told by the back door"
            super().__setattr__(name, value)

    case = make_case()
    name = "cvpr25" if play is play_challenge else "clicks"
    for _ in play(Spy(), case, InteractionProtocol(name=name, num_clicks=2)):
        pass
    assert {type(thing) for thing in given} <= {Volume, Point, Box}
    volumes = [thing for thing in given if isinstance(thing, Volume)]
    assert volumes == [case.volume]
    assert not np.shares_memory(case.volume.array, case.labels)


@pytest.mark.parametrize("kind", ["session", "ball", "threshold"])
def test_copies_of_a_segmenter_have_prompts_of_their_own(kind: str) -> None:
    """The challenge's classes go in parallel; each must get what it would get alone."""

    def make() -> Any:
        if kind == "session":
            return Session(Predictor(BrightModel()))
        return BallSegmenter(3.0) if kind == "ball" else BoxedThreshold()

    def start(segmenter: Any) -> Any:
        segmenter.set_volume(make_case().volume)
        return segmenter

    clicks = ([(5, 5, 4), (3, 3, 3)], [(13, 8, 4), (12, 7, 3)])
    common = start(make())
    copies = [copy.copy(common) for _ in clicks]
    for each in copies:
        each.reset()
    together = [
        [each.add_point(Point.voxel(of[number])) for each, of in zip(copies, clicks, strict=True)]
        for number in range(2)
    ]
    for index, of in enumerate(clicks):
        alone = start(make())
        for number, at in enumerate(of):
            wanted = alone.add_point(Point.voxel(at)).mask.array
            np.testing.assert_array_equal(together[number][index].mask.array, wanted)
