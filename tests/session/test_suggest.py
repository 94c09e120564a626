"""Suggest everything: each structure once, ranked, not in air; the same every time, bounded."""

import threading

import numpy as np
import pytest
import torch
from scipy import ndimage

from fastsam3d.errors import CheckpointError, ConfigError
from fastsam3d.model.embedding import ImageEmbedding
from fastsam3d.preprocess.roi import Roi
from fastsam3d.session import Predictor, ScalePolicy, Session, Study
from fastsam3d.session.object_mask import ObjectMask
from fastsam3d.session.suggest import SuggestPolicy, suggest_objects
from fastsam3d.session.suggest_grid import level_spacings, plan_levels
from fastsam3d.volume import Geometry, Volume
from tests.session.phantoms import SIZE, FakeConfig, dice

BALLS = [((12, 12, 14), 6.0), ((30, 28, 14), 5.0), ((14, 32, 16), 4.0)]
SHAPE = (42, 44, 30)


class BallModel:
    """Answers a click with the ball of its own that it lies in; elsewhere with a poor guess."""

    config = FakeConfig()

    def __init__(self) -> None:
        self.num_clicks = 0

    def encode_image(self, image):
        return ImageEmbedding(image.clone(), (), SIZE)

    def decode_masks(self, embedding, points, _, **__):
        self.num_clicks += len(points)
        logits, quality = zip(
            *(self.answer(embedding.tokens[0, 0], p[0]) for p in points), strict=True
        )
        return torch.stack(logits)[:, None], torch.tensor(quality)[:, None]

    def answer(self, image, point):
        at = tuple(point.long().tolist())
        bright = image > (image.min() + image.max()) / 2
        if not bright[at]:
            return torch.full((SIZE,) * 3, -6.0), 0.1
        labels = ndimage.label(bright.numpy())[0]
        return torch.as_tensor(np.where(labels == labels[at], 6.0, -6.0)).float(), 0.9


def balls_volume(shape=SHAPE, spacing=1.0, balls=BALLS):
    index = np.moveaxis(np.indices(shape), 0, -1)
    distance = np.min([np.linalg.norm(index - at, axis=-1) - r for at, r in balls], axis=0)
    array = (1000 / (1 + np.exp(distance / 0.3))).astype(np.int16)
    return Volume(array, Geometry(shape, np.diag([spacing, spacing, spacing, 1.0])))


def policy(**changes):
    values = {"spacings_mm": (1.0,), "max_points": 120, "core": 0.6, "min_ml": 0.01} | changes
    return SuggestPolicy(**values)


def truth(volume, ball):
    at, radius = ball
    index = np.moveaxis(np.indices(volume.shape), 0, -1)
    return np.linalg.norm(index - at, axis=-1) < radius


def test_each_structure_is_suggested_once_and_air_is_not_asked():
    volume, model = balls_volume(), BallModel()
    found = suggest_objects(Predictor(model), volume, policy())
    masks = [one.mask.to_array(volume.shape) for one in found]
    assert len(found) == len(BALLS)
    for ball in BALLS:
        assert max(dice(mask, truth(volume, ball)) for mask in masks) > 0.9
    assert model.num_clicks <= 120 + len(BALLS)
    assert all(volume.array[tuple(int(v) for v in one.point.position)] > 100 for one in found)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


def test_suggestions_are_the_same_every_time():
    volume = balls_volume()
    one, two = (suggest_objects(Predictor(BallModel()), volume, policy()) for _ in range(2))
    assert [a.point for a in one] == [b.point for b in two]
    assert all(a.mask.equals(b.mask) for a, b in zip(one, two, strict=True))


def test_an_object_across_rois_is_put_together(monkeypatch):
    rod = [((x, 11, 11), 4.0) for x in range(10, 86, 3)]
    volume = balls_volume((96, 22, 22), balls=rod)
    whole = volume.array > 500
    (found,) = suggest_objects(Predictor(BallModel()), volume, policy(recentre=False))
    assert dice(found.mask.to_array(volume.shape), whole) > 0.95
    # What an ROI cuts off, and no other agrees on, is no object.
    monkeypatch.setattr("fastsam3d.session.suggest._agree", lambda *_: False)
    assert not suggest_objects(Predictor(BallModel()), volume, policy(recentre=False))


def test_what_is_there_already_is_not_suggested_again():
    volume = balls_volume()
    known = ObjectMask.cropped(volume.geometry.region, truth(volume, BALLS[0]))
    found = suggest_objects(Predictor(BallModel()), volume, policy(), known=[known])
    assert len(found) == len(BALLS) - 1
    assert all(one.mask.intersection(known).is_empty for one in found)


class ShyModel(BallModel):
    """As `BallModel`, but sure of itself only where it is asked in the middle of a ball."""

    def answer(self, image, point):
        logits, quality = super().answer(image, point)
        inside = np.argwhere(logits.numpy() > 0)
        is_middle = len(inside) and np.linalg.norm(inside.mean(0) - point.numpy()) < 0.5
        return logits, quality if is_middle else 0.2


def test_a_doubtful_answer_is_asked_again_from_its_middle_and_judged_by_that():
    volume = balls_volume()
    found = suggest_objects(Predictor(ShyModel()), volume, policy())
    assert len(found) == len(BALLS)
    assert all(one.quality > 0.8 for one in found)
    strict = suggest_objects(Predictor(ShyModel()), volume, policy(first_bar=1.0))
    assert len(strict) < len(BALLS)
    # Below that bar nothing is asked again.
    assert not suggest_objects(Predictor(ShyModel()), volume, policy(min_quality=0.95))


@pytest.mark.parametrize(("model", "is_doubtful"), [(BallModel(), False), (ShyModel(), True)])
def test_a_doubtful_answer_keeps_no_finer_click_away(model, is_doubtful):
    volume = balls_volume(balls=[((21, 22, 15), 12.0)])
    chosen = policy(spacings_mm=(1.3, 0.9), max_points=40, max_suggestions=1)
    keys = ("spacings_mm", "core", "max_points", "min_intensity")
    levels = plan_levels(volume, size=SIZE, **{key: getattr(chosen, key) for key in keys})
    suggest_objects(Predictor(model), volume, chosen)
    lattice = sum(len(tile.voxels) for level in levels for tile in level)
    assert len(levels) == 2
    assert (model.num_clicks == lattice + 1) is is_doubtful


@pytest.mark.parametrize(
    "strict", [{"min_quality": 0.95}, {"min_ml": 5.0}, {"stability_shift": 7.0}]
)
def test_what_is_not_to_be_trusted_is_dropped(strict):
    assert suggest_objects(Predictor(BallModel()), balls_volume(), policy(**strict)) == ()


def test_the_number_is_bounded():
    found = suggest_objects(Predictor(BallModel()), balls_volume(), policy(max_suggestions=2))
    assert len(found) == 2


def test_progress_rises_to_the_end_and_cancelling_returns_what_was_found():
    volume, model, stop = balls_volume(), BallModel(), threading.Event()
    told: list[tuple[int, int]] = []
    suggest_objects(Predictor(model), volume, policy(), on_progress=lambda *n: told.append(n))
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]
    asked = model.num_clicks

    def stop_after_the_first(_done, _total):
        stop.set()

    some = suggest_objects(
        Predictor(model),
        volume,
        policy(),
        on_progress=stop_after_the_first,
        is_cancelled=stop.is_set,
    )
    assert 0 < model.num_clicks - asked < asked
    assert len(some) <= len(BALLS)


def test_nothing_is_found_in_a_constant_volume():
    volume = Volume(np.full((20, 20, 20), 7, np.int16), Geometry((20, 20, 20), np.eye(4)))
    assert suggest_objects(Predictor(BallModel()), volume, policy()) == ()


def test_broken_weights_are_named():
    class Broken(BallModel):
        def answer(self, *_):
            return torch.full((SIZE,) * 3, torch.nan), 0.5

    with pytest.raises(CheckpointError, match="not finite"):
        suggest_objects(Predictor(Broken()), balls_volume(), policy())


@pytest.mark.parametrize(
    "wrong", [{"core": 0}, {"max_iou": 2}, {"spacings_mm": ()}, {"max_points": 0}, {"min_ml": 0}]
)
def test_a_policy_without_meaning_is_refused(wrong):
    with pytest.raises(ConfigError):
        policy(**wrong)


def test_clicks_lie_in_their_rois_and_are_as_many_as_asked_at_most():
    shape = (60, 50, 4)
    affine = np.diag([-1.0, 1.0, 6.0, 1.0])  # left-handed, thick slices
    volume = Volume(np.random.default_rng(1).random(shape), Geometry(shape, affine))
    levels = plan_levels(
        volume, spacings_mm=(3.0, 1.0), size=SIZE, core=0.6, max_points=80, min_intensity=0.2
    )
    assert len(levels) == 2
    for level in levels:
        voxels = np.concatenate([tile.voxels for tile in level])
        assert 20 <= len(voxels) <= 40
        assert len(np.unique(voxels, axis=0)) == len(voxels)
        for tile in level:
            assert isinstance(tile.roi, Roi)
            region = volume.geometry.region
            assert np.all(tile.voxels >= region.start)
            assert np.all(tile.voxels < region.stop)


def test_levels_that_make_no_difference_count_once():
    geometry = Geometry((20, 20, 20), np.eye(4))
    assert level_spacings(geometry, (8.0, 4.0, 2.0), SIZE) == pytest.approx((20 / 31,), rel=0.05)


def test_a_study_suggests_and_accepts_as_one_change_that_prompts_build_on():
    volume = balls_volume()
    session = Session(Predictor(BallModel()), policy=ScalePolicy(spacings_mm=(1.0,)))
    study = Study(session, volume)
    first, *_ = study.suggest(policy())
    accepted = study.accept(first, name="vessel")
    np.testing.assert_array_equal(study.mask(accepted).array, first.mask.to_array(volume.shape))
    assert study.objects[0].name == "vessel"
    assert study.objects[0].quality == first.quality
    assert study.replay() == ()
    assert "objects: 1 'vessel'" in repr(study)
    assert len(study.suggest(policy())) == len(BALLS) - 1
    study.undo()
    assert study.objects == ()
