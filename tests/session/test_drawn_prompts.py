"""Scribbles and lassos in a session: what was painted binds, and every frame is the same."""

import numpy as np
import pytest

from fastsam3d.model.card import Preprocessing
from fastsam3d.preprocess.roi import roi_to_voxel
from fastsam3d.prompts import Box, Lasso, Point, PromptSet, Scribble, SliceBox
from fastsam3d.session import Predictor, ScalePolicy, Session
from fastsam3d.session.drawn_rounds import DrawnPolicy
from fastsam3d.session.evidence import apply_evidence
from fastsam3d.volume import Geometry, Region, Volume
from tests.session.phantoms import BrightModel, ball_truth, ball_volume, dice

VOLUME = ball_volume()
GEOMETRY = VOLUME.geometry
TRUTH = ball_truth(GEOMETRY)
ACROSS = Scribble.voxel([(26, 30, 30), (34, 30, 30)], axis=2)
AROUND = Lasso.voxel([(19, 19, 30), (19, 41, 30), (41, 41, 30), (41, 19, 30)], axis=2)


def make_session() -> Session:
    session = Session(Predictor(BrightModel()), policy=ScalePolicy(max_growths=1))
    session.set_volume(VOLUME)
    return session


@pytest.mark.parametrize("prompt", [ACROSS, AROUND, SliceBox.voxel(2, 30, (20, 20), (41, 41))])
def test_each_kind_finds_the_object_by_itself(prompt: object) -> None:
    result = make_session().add(prompt)
    assert dice(result.mask.array, TRUTH) > 0.9
    assert result.warnings == ()


def test_a_mask_is_the_same_from_every_frame() -> None:
    voxel = PromptSet((AROUND, Scribble.voxel([(5, 5, 30), (9, 5, 30)], radius_mm=2, axis=2)))
    ras = [GEOMETRY.voxel_to_world(list(part)) for part in (AROUND.outline, voxel.prompts[1].path)]
    expected = make_session().predict(voxel).mask.array
    for frame, signs in (("RAS", (1, 1, 1)), ("LPS", (-1, -1, 1))):
        world = PromptSet(
            (
                Lasso.world(ras[0] * signs, frame, axis=2),
                Scribble.world(ras[1] * signs, frame, radius_mm=2, axis=2),
            )
        )
        np.testing.assert_array_equal(make_session().predict(world).mask.array, expected)


def test_painted_voxels_are_in_the_mask_and_erased_ones_are_not() -> None:
    session = make_session()
    session.add_point((30, 30, 30))
    far = Scribble.voxel([(50, 50, 50), (50, 55, 50)], radius_mm=1)
    erased = Lasso.voxel([(29, 15, 33), (29, 45, 33), (45, 45, 33), (45, 15, 33)],
                         axis=2, positive=False)  # fmt: skip
    session.add(far)
    mask = session.add(erased).mask.array
    assert mask[tuple(far.voxels(GEOMETRY).T)].all()
    assert not mask[tuple(erased.voxels(GEOMETRY).T)].any()


def given_to_model(session: Session) -> list[tuple[list, bool]]:
    """Points of the last decoding, in the frame of the volume, and their signs."""
    roi, _ = session.logits
    last = session.predictor.model.decoded[-1]
    voxels = roi_to_voxel(last["points"][0].numpy(), GEOMETRY, roi).round(3)
    return [(v, bool(s)) for v, s in zip(voxels.tolist(), last["labels"][0], strict=True)]


def box_given(session: Session, number: int) -> list[float] | None:
    """Corners of the box of a decoding, in the frame of the volume."""
    roi, _ = session.logits
    box = session.predictor.model.decoded[number]["boxes"]
    if box is None:
        return None
    # A half-open corner n is the face before voxel n.
    return (roi_to_voxel(box[0].numpy().reshape(2, 3) - 0.5, GEOMETRY, roi) + 0.5).ravel().tolist()


@pytest.mark.parametrize("prompt", [AROUND, SliceBox.voxel(2, 30, (19, 19), (41, 41))])
def test_a_drawing_on_a_slice_becomes_a_box_as_deep_as_what_its_middle_gave(prompt: object) -> None:
    session = make_session()
    session.add(prompt)
    assert box_given(session, 0) is None
    low, high = np.array(box_given(session, -1)).reshape(2, 3)
    np.testing.assert_allclose((low[:2], high[:2]), [(19, 19), (41, 41)], atol=0.01)
    depth = np.flatnonzero(TRUTH.any(axis=(0, 1)))
    np.testing.assert_allclose((low[2], high[2]), (depth[0], depth[-1] + 1), atol=1)


def test_the_slice_of_a_drawing_is_the_same_from_every_frame_of_a_turned_scan() -> None:
    affine = np.array([[0, 0, -1.0, 60], [1, 0, 0, 3], [0, 1, 0, 5], [0, 0, 0, 1]])
    volume = Volume(VOLUME.array, Geometry(VOLUME.shape, affine))
    session = Session(Predictor(BrightModel()), policy=ScalePolicy(max_growths=1))
    session.set_volume(volume)
    expected = session.add(AROUND).mask.array
    world = volume.geometry.voxel_to_world(list(AROUND.outline))
    session.reset()
    found = session.add(Lasso.world(world, "RAS", axis=0)).mask.array
    np.testing.assert_array_equal(found, expected)


def test_nobody_drew_that_box_so_later_prompts_go_without_it() -> None:
    session = make_session()
    session.add(AROUND)
    session.add_point((30, 30, 45))
    assert box_given(session, -1) is None
    session.reset()
    session.add_box(Box.voxel((18, 18, 18), (43, 43, 43)))
    session.add(AROUND)
    assert box_given(session, -1) is not None


def test_models_that_know_scribbles_get_points_along_it_at_once() -> None:
    session = make_session()
    session.policy = ScalePolicy(spacings_mm=(1.0,))
    session.drawn = DrawnPolicy(scribble_points=3, scribble_corrections=0)
    session.add(Scribble.voxel([(25, 30, 30), (29, 30, 30), (35, 30, 30)], axis=2))
    expected = [([25.0, 30.0, 30.0], True), ([35.0, 30.0, 30.0], True), ([30.0, 30.0, 30.0], True)]
    assert given_to_model(session) == expected


def test_the_card_says_how_many_points_of_a_scribble_are_given_at_once() -> None:
    known = Preprocessing(
        normalisation="roi_percentile_zscore",
        image_size=32,
        spacings_mm=(1.0,),
        scribble_points=5,
    )
    assert Session(Predictor(BrightModel(), known)).drawn.scribble_points == 5
    assert Session(Predictor(BrightModel())).drawn.scribble_points == 1


def test_the_box_of_a_drawing_can_be_left_out() -> None:
    session = make_session()
    session.drawn = DrawnPolicy(boxes_first_mask=False)
    session.add(AROUND)
    assert all(one["boxes"] is None for one in session.predictor.model.decoded)


def test_a_drawing_starts_with_its_middle_and_goes_on_where_the_mask_disagrees() -> None:
    session = make_session()
    session.add(Scribble.voxel([(22, 30, 30), (38, 30, 30), (55, 30, 30)], axis=2))
    # The ball ends at 39 and the first point adds a ball up to 40, its middle is given next.
    assert given_to_model(session)[:2] == [([38, 30, 30], True), ([48, 30, 30], True)]


def test_a_drawing_that_agrees_with_the_mask_asks_the_model_nothing() -> None:
    session = make_session()
    first = session.add_point((30, 30, 30))
    decoded = len(session.predictor.model.decoded)
    again = session.add(ACROSS)
    assert len(session.predictor.model.decoded) == decoded
    assert (again.encode_ms, again.click_ms) == (0, 0)
    np.testing.assert_array_equal(again.mask.array, first.mask.array)


@pytest.mark.parametrize(
    "half",
    [
        Lasso.voxel([(15, 15, 30), (15, 45, 30), (27, 45, 30), (27, 15, 30)], axis=2),
        SliceBox.voxel(2, 30, (15, 15), (28, 45)),
        Lasso.voxel(
            [(33, 15, 30), (33, 45, 30), (45, 45, 30), (45, 15, 30)], axis=2, positive=False
        ),
        Scribble.voxel([(36, 25, 30), (36, 35, 30)], axis=2, positive=False),
    ],
)
def test_a_mask_that_leaves_the_drawing_is_corrected_by_negative_points(half: object) -> None:
    session = make_session()
    session.add_point((25, 30, 30))
    session.add(half)
    (first, second, *_) = given_to_model(session)
    assert first == ([25, 30, 30], True)
    (i, _, k), positive = second
    assert not positive
    assert i >= 28
    assert k == 30


def test_a_loosely_drawn_lasso_claims_nothing_near_its_outline() -> None:
    session = make_session()
    session.add_point((30, 30, 30))
    count = len(session.predictor.model.decoded)
    for reach in (9, 11):  # the ball's radius is 9.3
        corners = [(30 - reach, 30 - reach, 30), (30 - reach, 30 + reach, 30),
                   (30 + reach, 30 + reach, 30), (30 + reach, 30 - reach, 30)]  # fmt: skip
        session.predict(PromptSet((Point.voxel((30, 30, 30)), Lasso.voxel(corners, axis=2))))
    assert len(session.predictor.model.decoded) == count


def evidence(*prompts: object) -> np.ndarray:
    region = Region((10, 10, 10), (20, 20, 20))
    found, mask = apply_evidence(
        region, np.ones(region.shape, np.uint8), PromptSet(prompts), GEOMETRY
    )
    whole = np.zeros(GEOMETRY.shape, np.uint8)
    whole[found.slices] = mask
    return whole


def test_of_two_marks_the_later_counts() -> None:
    line = [(12, 12, 12), (18, 12, 12)]
    on, off = Scribble.voxel(line), Scribble.voxel(line, positive=False)
    assert evidence(off, on)[15, 12, 12] == 1
    assert evidence(on, off)[15, 12, 12] == 0


def test_a_later_click_of_the_other_sign_takes_a_mark_back() -> None:
    off = Scribble.voxel([(12, 12, 12), (18, 12, 12)], positive=False)
    assert evidence(off)[12:19, 12, 12].sum() == 0
    assert evidence(off, Point.voxel((14, 12, 12)))[12:19, 12, 12].all()
    assert evidence(off, Point.voxel((14, 13, 12)))[12:19, 12, 12].sum() == 0
    assert evidence(off, Point.voxel((14, 12, 12), positive=False))[12:19, 12, 12].sum() == 0


def test_nothing_painted_changes_nothing() -> None:
    region, mask = Region((1, 1, 1), (2, 2, 2)), np.ones((1, 1, 1), np.uint8)
    found = apply_evidence(region, mask, PromptSet((Point.voxel((1, 1, 1)), AROUND)), GEOMETRY)
    assert found[0] is region
    assert found[1] is mask


def test_paint_on_an_empty_answer_is_an_answer() -> None:
    empty = Region((0, 0, 0), (0, 0, 0))
    region, mask = apply_evidence(
        empty, np.zeros((0, 0, 0), np.uint8), PromptSet((ACROSS,)), GEOMETRY
    )
    assert region == Region((26, 30, 30), (35, 31, 31))
    assert mask.all()
