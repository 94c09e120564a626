"""Candidates: what else a click may have meant, and a choice that is a prompt like any other."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsam3d.errors import PromptError, SessionStateError
from fastsam3d.prompts import Box, Lasso, Point, PromptLog, Scribble, SliceBox
from fastsam3d.session import Predictor, ScalePolicy, Session, Study
from fastsam3d.session.candidates import SAME_IOU
from fastsam3d.session.drawn_rounds import DrawnPolicy
from fastsam3d.volume import Geometry, Volume
from tests.session.ambiguous_model import (
    BODY,
    CENTRE,
    CORE,
    SHELL,
    SIDE,
    FollowingModel,
    NestedModel,
    nested_session,
    nested_volume,
)
from tests.session.phantoms import BrightModel, ball_volume

VOLUME = nested_volume()
TUBE, TUBE_CENTRE = (40, 40, 112), (20, 20, 56)
voxels = st.tuples(*[st.integers(14, 26)] * 3)


def voxels_within(radius: float) -> np.ndarray:
    index = np.moveaxis(np.indices((SIDE,) * 3), 0, -1)
    return np.linalg.norm(index - np.asarray(CENTRE), axis=-1) <= radius


def tube_within(radius: float) -> np.ndarray:
    at = np.moveaxis(np.indices(TUBE), 0, -1)
    is_near = np.linalg.norm(at[..., :2] - np.asarray(TUBE_CENTRE[:2]), axis=-1) <= radius
    return is_near & (at[..., 2] >= 4) & (at[..., 2] < TUBE[2] - 4)


def nested_tube() -> Volume:
    """Return three tubes inside each other, longer than three ROIs."""
    array = np.zeros(TUBE)
    for radius, brightness in (SHELL, BODY, CORE):
        array[tube_within(radius)] = brightness
    noise = np.random.default_rng(0).normal(0, 5, TUBE)
    return Volume((array + noise).astype(np.float32), Geometry(TUBE, np.eye(4)))


def tube_session(volume: Volume) -> Session:
    policy = ScalePolicy(spacings_mm=(1.25,), max_growths=0)
    session = Session(Predictor(FollowingModel()), policy=policy)
    session.set_volume(volume)
    return session


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return np.count_nonzero(a & b) / np.count_nonzero(a | b)


def whole(candidate) -> np.ndarray:
    return candidate.mask.to_array((SIDE,) * 3) > 0


def test_a_click_may_mean_a_part_or_the_whole():
    session = nested_session()
    session.add_point(CENTRE)
    found = {candidate.kind: candidate for candidate in session.candidates()}
    for kind, (radius, _) in {"part": CORE, "answer": BODY, "whole": SHELL}.items():
        assert iou(whole(found[kind]), voxels_within(radius)) > 0.75, kind
    np.testing.assert_array_equal(whole(found["answer"]), session.prediction.mask.array > 0)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(voxels, st.booleans()), min_size=1, max_size=3))
def test_candidates_are_few_different_sorted_and_always_the_same(clicks):
    session = nested_session(volume=VOLUME)
    for voxel, positive in [(CENTRE, True), *clicks]:
        session.add_point(voxel, positive=positive)
    shown, prompts = session.prediction, session.prompts
    found = session.candidates()
    assert 1 <= len(found) <= 3
    assert [c.quality for c in found] == sorted((c.quality for c in found), reverse=True)
    for a, b in combinations(found, 2):
        assert iou(whole(a), whole(b)) <= SAME_IOU
    assert all(c.mask.num_voxels for c in found)
    for a, b in zip(found, session.candidates(), strict=True):
        assert a.kind == b.kind
        assert a.mask.equals(b.mask)
    assert session.prediction is shown
    assert session.prompts == prompts


@settings(max_examples=8, deadline=None)
@given(st.lists(voxels, max_size=2), st.integers(0, 2))
def test_a_choice_is_exactly_that_mask_and_undo_takes_it_back(clicks, index):
    session = nested_session(volume=VOLUME)
    for voxel in (CENTRE, *clicks):
        before = session.add_point(voxel)
    found = session.candidates()
    candidate = found[index % len(found)]
    answer = session.choose(candidate)
    np.testing.assert_array_equal(answer.mask.array > 0, whole(candidate))
    undone = session.undo()
    assert undone.region == before.region
    np.testing.assert_array_equal(undone.region_mask, before.region_mask)


def test_a_choice_replays_from_json_bit_by_bit():
    session = nested_session()
    session.add_point(CENTRE)
    session.choose(session.candidates()[-1])
    last = session.add_point((20, 20, 29), positive=False)
    log = PromptLog.from_json(PromptLog().add(*session.prompts).to_json())
    again = nested_session().predict(log.prompts)
    assert again.region == last.region
    np.testing.assert_array_equal(again.region_mask, last.region_mask)


def test_removing_the_click_before_a_choice_leaves_the_choice():
    session = nested_session()
    session.add_point(CENTRE)
    candidate = session.candidates()[-1]
    session.choose(candidate)
    left = PromptLog().add(*session.prompts).remove(1)
    np.testing.assert_array_equal(session.predict(left.prompts).mask.array > 0, whole(candidate))


def test_the_next_click_goes_on_from_the_choice():
    session = nested_session()
    session.add_point(CENTRE)
    part = next(c for c in session.candidates() if c.kind == "part")
    session.choose(part)
    _, chosen = session.logits
    session.add_point((20, 20, 22))
    fed = session.predictor.model.decoded[-1]
    assert fed["mask"][0, 0].equal(chosen)
    assert len(fed["points"][0]) == 2


def test_models_without_other_masks_leave_the_answer_alone():
    session = nested_session(model=BrightModel())
    session.add_point(CENTRE)
    assert [candidate.kind for candidate in session.candidates()] == ["answer"]


def test_what_was_painted_binds_every_candidate():
    session = nested_session()
    session.add_point(CENTRE)
    session.add(Scribble.voxel([(20, 20, 1), (20, 20, 3)]))
    found = session.candidates()
    assert len(found) > 1
    assert all(whole(candidate)[20, 20, 1:4].all() for candidate in found)


def test_a_candidate_is_followed_beyond_the_roi_as_the_answer_was():
    volume = nested_tube()
    session = tube_session(volume)
    assert not session.add_point(TUBE_CENTRE).warnings
    found = {candidate.kind: candidate for candidate in session.candidates()}
    assert set(found) == {"part", "answer", "whole"}
    for kind, (radius, _) in {"part": CORE, "answer": BODY, "whole": SHELL}.items():
        truth = tube_within(radius)
        assert iou(found[kind].mask.to_array(volume.shape) > 0, truth) > 0.8, kind


def test_a_candidate_of_a_later_click_keeps_what_earlier_tiles_saw():
    volume = nested_tube()
    session = tube_session(volume)
    session.add_point(TUBE_CENTRE)
    i, j, k = TUBE_CENTRE
    session.add_point((i, j, k + 30))
    answer = session.prediction.mask.array > 0
    for candidate in session.candidates():
        mask = candidate.mask.to_array(volume.shape) > 0
        np.testing.assert_array_equal(mask[:, :, :40], answer[:, :, :40])


def test_masks_that_hold_no_click_are_not_offered():
    class Elsewhere(NestedModel):
        def decode_masks(self, embedding, points, labels, *, multimask=False, **options):
            logits, quality = super().decode_masks(
                embedding, points, labels, multimask=multimask, **options
            )
            if multimask:
                logits = logits.clone()
                logits[:, 0] = -1.0
                logits[:, 0, 2:8, 2:8, 2:8] = 1.0
            return logits, quality

    session = nested_session(model=Elsewhere())
    session.add_point(CENTRE)
    assert sorted(candidate.kind for candidate in session.candidates()) == ["answer", "whole"]


def test_without_a_place_there_is_nothing_to_choose_from():
    session = nested_session()
    with pytest.raises(SessionStateError, match="no answer yet; call add_point"):
        session.candidates()
    session.add_point(CENTRE, positive=False)
    assert session.candidates() == ()


def test_a_box_has_candidates_too():
    session = nested_session()
    session.add_box(Box.voxel((9, 9, 9), (32, 32, 32)))
    assert {candidate.kind for candidate in session.candidates()} == {"answer", "part", "whole"}


@pytest.mark.parametrize(
    ("half", "radius"), [(6, CORE[0]), (10, BODY[0]), (15, SHELL[0])], ids=["part", "body", "whole"]
)
def test_a_first_box_is_answered_by_the_candidate_that_fills_it(half, radius):
    session = nested_session()
    low, high = (tuple(v + step for v in CENTRE) for step in (-half, half + 1))
    answer = session.add_box(Box.voxel(low, high))
    assert iou(answer.mask.array > 0, voxels_within(radius)) > 0.75
    session.policy = replace(session.policy, box_margin=1.0)
    answer = session.predict(session.prompts)
    assert iou(answer.mask.array > 0, voxels_within(BODY[0])) > 0.75


@pytest.mark.parametrize(
    ("radius", "is_lasso"), [(r, kind) for r, _ in (CORE, BODY, SHELL) for kind in (True, False)]
)
def test_a_drawing_on_a_slice_may_start_from_the_candidate_that_fits_it(radius, is_lasso):
    i, j, k = CENTRE
    low, high = (i - round(radius), j - round(radius)), (i + round(radius), j + round(radius))
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    outline = [(i + radius * np.cos(t), j + radius * np.sin(t), k) for t in turn]
    drawn = Lasso.voxel(outline, axis=2) if is_lasso else SliceBox.voxel(2, k, low, high)
    session = nested_session(model=FollowingModel())
    session.drawn = DrawnPolicy(lasso_corrections=0, slice_box_corrections=0, candidate_margin=0.1)
    assert iou(session.add(drawn).mask.array > 0, voxels_within(radius)) > 0.7
    session.drawn = replace(session.drawn, candidate_margin=1.0)
    assert iou(session.predict(session.prompts).mask.array > 0, voxels_within(BODY[0])) > 0.7


def test_a_candidate_of_another_volume_is_refused():
    session = nested_session()
    session.add_point(CENTRE)
    candidate = session.candidates()[0]
    session.set_volume(ball_volume())
    with pytest.raises(PromptError, match="another grid"):
        session.choose(candidate)


def test_a_study_chooses_in_one_step_that_is_saved_and_replayed(tmp_path):
    study = Study(nested_session(), VOLUME)
    first, second = study.add_object(), study.add_object()
    assert study.candidates(first) == ()
    study.add(first, Point.voxel(CENTRE))
    study.add(second, Point.voxel((5, 5, 5)))
    before = study.mask(first).array
    part = next(c for c in study.candidates(first) if c.kind == "part")
    answer = study.choose(first, part)
    np.testing.assert_array_equal(answer.mask.array > 0, whole(part))
    assert len(study.log(first)) == 2
    study.save(tmp_path / "a.study")
    again = Study.load(tmp_path / "a.study", nested_session(), VOLUME)
    assert again.log(first) == study.log(first)
    assert again.replay() == ()
    study.undo()
    np.testing.assert_array_equal(study.mask(first).array, before)
    study.lock(first)
    with pytest.raises(SessionStateError, match="locked"):
        study.choose(first, part)
