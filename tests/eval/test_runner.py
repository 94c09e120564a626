from dataclasses import replace

import numpy as np
import pytest

from fastsam3d.errors import ConfigError, DatasetError, SessionStateError
from fastsam3d.eval.baselines import BallSegmenter, BlindModel
from fastsam3d.eval.metrics import dice, volume_ml
from fastsam3d.eval.protocol import InteractionProtocol
from fastsam3d.eval.runner import run
from fastsam3d.prompts import Point
from fastsam3d.segmenter import Prediction
from fastsam3d.volume import Volume
from tests.eval.toy import ThresholdSegmenter, make_case


def test_dice_counts_empty_masks_by_the_stated_rule() -> None:
    empty, full = np.zeros((2, 2, 2)), np.ones((2, 2, 2))
    half = full.copy()
    half[0] = 0
    assert dice(empty, empty) == 1.0
    assert dice(empty, full) == dice(full, empty) == 0.0
    assert dice(half, full) == pytest.approx(2 * 4 / 12)
    with pytest.raises(DatasetError, match="one grid"):
        dice(empty, np.zeros((1, 2, 2)))


def test_volume_is_in_millilitres() -> None:
    assert volume_ml(np.ones((10, 10, 10)), (1.0, 2.0, 0.5)) == pytest.approx(1.0)


def test_every_structure_of_at_least_30_voxels_is_a_target() -> None:
    def labels(**options: int) -> list[int]:
        return [target.label for target in InteractionProtocol(**options).targets(make_case())]

    assert labels() == [1, 4]
    assert labels(min_voxels=1) == [1, 4, 7]
    assert labels(max_targets=1) == [1]


def test_a_protocol_refuses_impossible_values() -> None:
    for wrong in ({"num_clicks": 0}, {"max_targets": 0}, {"placement": "corner"}):
        with pytest.raises(ConfigError):
            InteractionProtocol(**wrong)


def test_the_segmenter_sees_the_volume_and_points_and_nothing_else() -> None:
    case, segmenter = make_case(), ThresholdSegmenter()
    rows = run(segmenter, [case], InteractionProtocol(num_clicks=2))
    assert segmenter.given[0] is case.volume
    assert all(isinstance(thing, (Volume, Point)) for thing in segmenter.given)
    assert sum(isinstance(thing, Volume) for thing in segmenter.given) == 1
    assert segmenter.num_resets == 2
    assert [row.round for row in rows] == [1, 2, 1, 2]
    assert [row.structure for row in rows] == ["liver", "liver", "spleen", "spleen"]


def test_a_perfect_mask_is_carried_on_without_clicks() -> None:
    rows = run(ThresholdSegmenter(), [make_case()], InteractionProtocol(num_clicks=3))
    liver = [row for row in rows if row.structure == "liver"]
    assert [row.dice for row in liver] == [1.0, 1.0, 1.0]
    assert liver[0].position == (5, 5, 4)
    assert liver[0].positive
    assert liver[1].position is None
    assert [row.encode_ms for row in liver] == [2.0, 0.0, 0.0]
    assert liver[2].spacing_mm == 1.5


def test_rows_keep_the_last_result_even_when_a_click_made_it_worse() -> None:
    class Forgetful(ThresholdSegmenter):
        def add_point(self, point: Point) -> Prediction:
            answer = super().add_point(point)
            worse = answer.region_mask.copy()
            worse[5] = 0
            return replace(answer, region_mask=worse if len(self.points) == 1 else 0 * worse)

    protocol = InteractionProtocol(num_clicks=2, max_targets=1)
    rows = run(Forgetful(), [make_case()], protocol)
    assert rows[0].dice > 0.8
    assert rows[1].dice == 0.0


def test_drawn_clicks_repeat_with_the_seed() -> None:
    def positions(seed: int) -> list[object]:
        protocol = InteractionProtocol(placement="random", seeds=(seed,))
        return [row.position for row in run(BallSegmenter(3.0), [make_case()], protocol)]

    assert positions(1) == positions(1)
    assert positions(1) != positions(2)


def test_a_ball_is_round_in_millimetres_and_negative_clicks_cut() -> None:
    case, ball = make_case(), BallSegmenter(3.0)
    ball.set_volume(case.volume)
    mask = ball.add_point(Point.voxel((9, 8, 5))).mask.array
    assert mask[12, 8, 5]
    assert not mask[13, 8, 5]
    assert mask[9, 8, 7]
    assert not mask[9, 8, 8]
    cut = ball.add_point(Point.voxel((12, 8, 5), positive=False)).mask.array
    assert not cut[12, 8, 5]
    assert cut[7, 8, 5]
    ball.reset()
    assert not ball.add_point(Point.voxel((1, 1, 1))).mask.array[9, 8, 5]


def test_a_ball_needs_a_radius_and_a_volume() -> None:
    with pytest.raises(ConfigError, match="radius_mm"):
        BallSegmenter(0.0)
    with pytest.raises(SessionStateError, match="set_volume"):
        BallSegmenter(1.0).add_point(Point.voxel((0, 0, 0)))


class RecordingModel:
    """Keeps what it was asked."""

    config = None

    def __init__(self) -> None:
        self.seen: list[object] = []

    def encode_image(self, image: np.ndarray) -> np.ndarray:
        self.seen.append(image)
        return image

    def decode_masks(self, *given: object, **named: object) -> str:
        self.seen.append((given, named))
        return "mask"


def test_a_blind_model_sees_zeros_and_every_prompt() -> None:
    inner = RecordingModel()
    blind = BlindModel(inner)
    image = np.ones((1, 1, 2, 2, 2), np.float32)
    assert not blind.encode_image(image).any()
    assert image.all()
    assert blind.decode_masks("e", "p", "l", boxes="b", mask_logits="m", multimask=True) == "mask"
    named = {"boxes": "b", "mask_logits": "m", "multimask": True}
    assert inner.seen[-1] == (("e", "p", "l"), named)
