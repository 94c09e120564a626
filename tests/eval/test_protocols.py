"""The rules of the protocols, on cases whose outcome is known or that a plain copy computes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fastsam3d.errors import ConfigError
from fastsam3d.eval import protocol_cvpr25
from fastsam3d.eval.boxed import BoxedMask
from fastsam3d.eval.cases import EvalCase
from fastsam3d.eval.protocol import PROTOCOLS, InteractionProtocol
from fastsam3d.eval.protocol_clicks import play_case as play_clicks
from fastsam3d.eval.protocol_cvpr25 import box_of_truth
from fastsam3d.eval.protocol_cvpr25 import play_case as play_challenge
from fastsam3d.eval.protocol_paper import crop_around
from fastsam3d.eval.protocol_paper import play_case as play_paper
from fastsam3d.eval.results import ResultRow
from fastsam3d.prompts import Box, Point
from fastsam3d.segmenter import Prediction
from fastsam3d.volume import Geometry, Region, Volume
from tests.eval.toy import BoxedThreshold, ThresholdSegmenter, make_case
from tests.prompts.test_simulate import published_click


class ClickHash(BoxedThreshold):
    """Answers with noise that follows from the prompts alone: plenty of odd mistakes."""

    def add_point(self, point: Point) -> Prediction:
        answer = super().add_point(point)
        return replace(answer, region_mask=self.mask())

    def add_box(self, box: Box) -> Prediction:
        self.points = [Point.voxel(box.start), *self.points]
        return self.add_point(Point.voxel(box.start))

    def mask(self) -> np.ndarray:
        assert self.volume is not None
        return prompt_noise([point.position for point in self.points], self.volume.shape)


def prompt_noise(positions: list[Any], shape: tuple[int, ...]) -> np.ndarray:
    seed = [int(value) for position in positions for value in position]
    return (np.random.default_rng(seed).random(shape) < 0.35).astype(np.uint8)


def rows_of(play: Any, segmenter: Any, case: EvalCase, **options: Any) -> list[ResultRow]:
    protocol = InteractionProtocol(**options)
    return [
        row for unit in play(segmenter, case, protocol) for target in unit for row in target.rows
    ]


def published_rounds(case: EvalCase, boxes: dict[int, Region], num_clicks: int) -> dict[Any, Any]:
    """The challenge's loop over label maps (D, H, W); classes merge as `without_overlaps` says."""
    truth = case.labels.transpose()
    classes = [int(value) for value in np.unique(truth) if value > 0]
    prompts: dict[int, list[Any]] = {value: [] for value in classes}
    segs = np.zeros_like(truth)
    found: dict[Any, Any] = {}
    for number in range(num_clicks + 1):
        clicks: dict[int, Any] = {}
        for value in classes:
            if number == 0:
                prompts[value] += [boxes[value].start] * 2
            elif ((segs == value) != (truth == value)).any():
                clicks[value] = published_click(segs == value, truth == value)
                prompts[value].append(clicks[value][0][::-1])
        masks = {v: prompt_noise(prompts[v], truth.shape[::-1]).transpose() for v in classes}
        segs = np.zeros_like(truth)
        for value in sorted(classes, key=lambda v: (-int(masks[v].sum()), v)):
            segs[masks[value] > 0] = value
        for value in classes:
            overlap = ((segs == value) & (truth == value)).sum()
            size = (segs == value).sum() + (truth == value).sum()
            click = clicks.get(value)
            at = None if click is None else click[0][::-1]
            found[value, number] = (at, None if click is None else click[1], 2 * overlap / size)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_a_challenge_case_goes_as_in_the_published_loop(seed: int) -> None:
    pytest.importorskip("cc3d")
    labels = np.random.default_rng(seed).integers(0, 3, (9, 8, 7)).astype(np.uint8)
    geometry = Geometry(labels.shape, np.diag([1.0, 2.0, 3.0, 1.0]))
    boxes = {1: Region((1, 2, 3), (4, 5, 6)), 2: Region((0, 1, 2), (7, 7, 7))}
    case = EvalCase(
        name="c", source="s", volume=Volume(labels * 9, geometry), labels=labels, boxes=boxes
    )
    rows = rows_of(play_challenge, ClickHash(), case, name="cvpr25", num_clicks=4, min_voxels=1)
    wanted = published_rounds(case, boxes, 4)
    assert len(rows) == len(wanted) == 2 * 5
    for row in rows:
        position, positive, dice = wanted[row.label, row.round]
        assert (row.position, row.positive) == (position, positive)
        assert row.dice == pytest.approx(dice)
        assert row.prompt == ("box" if row.round == 0 else "point")


def test_a_class_without_a_mistake_gets_no_click_and_keeps_its_score() -> None:
    rows = rows_of(
        play_challenge, BoxedThreshold(), make_case(), name="cvpr25", num_clicks=2, min_voxels=30
    )
    assert [(row.round, row.prompt) for row in rows] == 2 * [(0, "box"), (1, "none"), (2, "none")]
    assert {row.dice for row in rows} == {1.0}
    assert {row.subject for row in rows} == {"clinic__a"}


@pytest.mark.parametrize(
    ("segmenter", "boxes"), [(ThresholdSegmenter(), None), (BoxedThreshold(), {})]
)
def test_without_a_box_the_round_counts_0_and_clicks_follow(segmenter: Any, boxes: Any) -> None:
    case = replace(make_case(), boxes=boxes)
    rows = rows_of(play_challenge, segmenter, case, name="cvpr25", num_clicks=1)
    assert [(r.round, r.prompt, r.dice) for r in rows[:2]] == [(0, "none", 0.0), (1, "point", 1.0)]


def test_beyond_90_seconds_per_class_all_scores_are_0(monkeypatch: pytest.MonkeyPatch) -> None:
    assert protocol_cvpr25.SECONDS_PER_CLASS == 90
    monkeypatch.setattr(protocol_cvpr25, "SECONDS_PER_CLASS", 0.0)
    rows = rows_of(play_challenge, BoxedThreshold(), make_case(), name="cvpr25", num_clicks=1)
    assert {(row.dice, row.nsd_1mm, row.nsd_2mm) for row in rows} == {(0, 0, 0)}
    assert all(row.encode_ms > 0 for row in rows if row.prompt == "box")


class FixedShift:
    """Stands for a random generator whose next number is known."""

    def __init__(self, number: int) -> None:
        self.number = number

    def integers(self, high: int) -> int:
        assert high == 6
        return self.number


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("shift", [0, 5])
def test_boxes_made_of_the_truth_are_the_published_ones(seed: int, shift: int) -> None:
    shape = (300, 260, 6)  # x, y, z
    rng = np.random.default_rng(seed)
    truth = np.zeros(shape, bool)
    low = rng.integers(0, (200, 200, 3))
    part = tuple(slice(a, a + n) for a, n in zip(low, (60, 40, 3), strict=True))
    truth[part] = rng.random((60, 40, 3)) < 0.01
    truth[tuple(low)] = True
    z, y, x = np.where(truth.transpose())
    middle = z[len(z) // 2]
    y, x = np.where(truth.transpose()[middle])
    wider_x, wider_y = int(shift * shape[0] / 256), int(shift * shape[1] / 256)
    wanted = Region(
        (max(0, x.min() - wider_x), max(0, y.min() - wider_y), z.min()),
        (min(299, x.max() + wider_x) + 1, min(259, y.max() + wider_y) + 1, z.max() + 1),
    )
    mask = BoxedMask.of(shape, Region((0, 0, 0), shape), truth)
    assert box_of_truth(mask, FixedShift(shift)) == wanted  # type: ignore[arg-type]


def elongated_case() -> EvalCase:
    """A bright rod, 300 mm long, near a corner of a scan with axes that are not canonical."""
    labels = np.zeros((40, 30, 120), np.uint8)
    labels[4:9, 20:29, 5:105] = 1
    affine = np.diag([-1.5, 1.0, 3.0, 1.0])
    affine[:3, 3] = (50.0, -20.0, 7.0)
    volume = Volume(labels.astype(np.int16) * 500 + 100, Geometry(labels.shape, affine))
    return EvalCase(name="rod", source="s", volume=volume, labels=labels)


def test_the_papers_crop_is_centred_on_the_truth_at_one_and_a_half_mm() -> None:
    case = elongated_case()
    target = InteractionProtocol().targets(case)[0]
    crop = crop_around(case.volume, target.truth)
    assert crop.volume.shape == (128, 128, 128)
    assert crop.volume.geometry.spacing == pytest.approx((1.5, 1.5, 1.5))
    assert crop.volume.geometry.canonical_reorder().is_identity
    middle = case.volume.geometry.voxel_to_world((6.0, 24.0, 54.5))
    np.testing.assert_allclose(
        crop.volume.geometry.voxel_to_world((64.0, 64.0, 64.0)), middle, atol=1e-6
    )
    # 7.5 x 9 mm wide; 300 mm long, of which the cube holds 192.
    sides = np.array(crop.truth.region.shape) * 1.5
    np.testing.assert_allclose(sides, (7.5, 9.0, 192.0), atol=1.51)
    # The image is cut at the same place, and what lies outside of the scan is 0.
    inside = crop.truth.whole()
    assert np.median(crop.volume.array[inside]) == 600
    assert crop.volume.array[0, 0, 0] == 0
    assert set(np.unique(crop.volume.array.astype(int))) >= {0, 100, 600}


def test_clicks_in_the_crop_are_told_as_voxels_of_the_file() -> None:
    case = elongated_case()
    rows = rows_of(play_paper, ThresholdSegmenter(), case, name="paper", num_clicks=2, seeds=(3,))
    assert rows[0].positive
    assert rows[0].position is not None
    assert case.labels[rows[0].position] == 1
    assert rows[0].dice > 0.8
    assert rows[0].truth_ml == pytest.approx(5 * 1.5 * 9 * 192 / 1000, rel=0.2)


class UpAndDown(ThresholdSegmenter):
    """Loses half of the structure with every second answer."""

    def add_point(self, point: Point) -> Prediction:
        answer = super().add_point(point)
        mask = answer.region_mask.copy()
        first = int(np.flatnonzero(mask.any(axis=(1, 2)))[0])
        mask[first : first + (4 if len(self.points) % 2 == 0 else 1)] = 0
        return replace(answer, region_mask=mask)


def test_the_papers_rows_hold_the_best_result_so_far_and_ours_the_last() -> None:
    options = {"num_clicks": 3, "max_targets": 1}
    best = rows_of(play_paper, UpAndDown(), make_case(), name="paper", **options)
    last = rows_of(play_clicks, UpAndDown(), make_case(), **options)
    assert last[1].dice < last[0].dice == last[2].dice
    assert last[1].mask_ml < last[0].mask_ml
    assert best[0].dice == best[1].dice == best[2].dice > 0.8
    assert best[0].mask_ml == best[1].mask_ml
    assert best[0].position != best[1].position


def test_a_structure_thinner_than_the_crops_voxels_is_not_lost() -> None:
    case = elongated_case()
    labels = np.zeros_like(case.labels)
    labels[10, 10, 20:60] = 1
    fine = Geometry(labels.shape, np.diag([0.3, 0.3, 0.3, 1.0]))
    thin = replace(case, labels=labels, volume=Volume(labels, fine))
    (target,) = InteractionProtocol().targets(thin)
    assert crop_around(thin.volume, target.truth).truth.num_voxels >= 6


def test_the_paper_protocol_says_that_it_is_an_oracle() -> None:
    assert PROTOCOLS["paper"].is_oracle
    assert "ORACLE UPPER BOUND" in PROTOCOLS["paper"].label
    assert [name for name, facts in PROTOCOLS.items() if facts.is_oracle] == ["paper"]
    assert all("github.com" in f.source or "arXiv" in f.source for f in PROTOCOLS.values())


@pytest.mark.parametrize("placement", ["uniform", "jitter"])
def test_seeds_are_users_of_their_own_whatever_else_is_evaluated(placement: str) -> None:
    case = make_case()
    many = rows_of(play_clicks, ClickHash(), case, placement=placement, seeds=(0, 1, 2))
    firsts = {(r.label, r.seed): r.position for r in many if r.round == 1}
    assert len(set(firsts.values())) > 2
    alone = rows_of(play_clicks, ClickHash(), case, placement=placement, seeds=(2,), max_targets=1)
    chosen = [r.position for r in many if (r.label, r.seed) == (1, 2)]
    assert [r.position for r in alone] == chosen


@pytest.mark.parametrize(
    "options",
    [
        {"name": "cvpr25", "use_components": True},
        {"name": "cvpr25", "seeds": (0, 1)},
        {"name": "paper", "placement": "jitter"},
        {"name": "other"},
        {"seeds": ()},
        {"seeds": (1, 1)},
        {"seeds": (-1,)},
    ],
)
def test_options_without_a_meaning_in_the_protocol_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        InteractionProtocol(**options)


def test_ignored_labels_are_no_targets() -> None:
    case = replace(make_case(), ignored=(4,))
    assert [target.label for target in InteractionProtocol().targets(case)] == [1]
