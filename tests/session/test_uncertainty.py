"""Uncertainty: the mean over moved prompts, the same for the same seed, and where to click next."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from fastsam3d.errors import ConfigError, SessionStateError
from fastsam3d.preprocess.roi import paste_values, roi_region, voxel_to_roi
from fastsam3d.prompts import Box, MaskPrompt, Point
from fastsam3d.session import Study
from fastsam3d.session.extent import clicked_parts
from fastsam3d.session.uncertainty import UncertaintyMap, jittered_prompts, map_uncertainty
from fastsam3d.volume import Geometry, Region, Volume
from tests.session.ambiguous_model import CENTRE, HesitantModel, nested_session, nested_volume
from tests.session.phantoms import SIZE

VOLUME = nested_volume()


def asked(*points, volume=VOLUME):
    session = nested_session(HesitantModel(), volume)
    for point in points or (CENTRE,):
        session.add_point(point)
    return session


def whole(found: UncertaintyMap) -> np.ndarray:
    return found.to_volume().array


def map_of(probability, spacing=(1.0, 1.0, 1.0)) -> UncertaintyMap:
    array = np.asarray(probability, np.float32)
    geometry = Geometry(tuple(n + 4 for n in array.shape), np.diag([*spacing, 1.0]))
    region = Region((1, 2, 3), tuple(np.add(array.shape, (1, 2, 3)).tolist()))
    return UncertaintyMap(
        geometry=geometry, region=region, probability=array, stability=1.0, num_samples=1
    )


def test_it_is_the_mean_probability_over_moved_prompts_decoded_one_by_one():
    session = asked(CENTRE, (22, 20, 20))
    look = session._look_back()
    sets = jittered_prompts(look, samples=5, jitter_mm=3.0, seed=7)
    probabilities, masks = [], []
    for prompts in sets:
        decoded = session.predictor.decode(look.encoded, prompts, mask_logits_SSS=look.fed_logits)
        kept = clicked_parts(decoded.logits, prompts.points[prompts.is_positive])
        probability = 1 / (1 + np.exp(-decoded.logits.numpy().astype(np.float64)))
        probabilities.append(np.where(kept == decoded.logits, probability, 0.0))
        masks.append(kept.numpy() > 0)
    mean = np.mean(probabilities, axis=0)
    ious = [np.sum(m & (mean > 0.5)) / np.sum(m | (mean > 0.5)) for m in masks]
    for batch_size in (None, 2, 5):
        found = map_uncertainty(look, samples=5, jitter_mm=3.0, seed=7, batch_size=batch_size)
        assert found.stability == pytest.approx(np.mean(ious))
        inside = np.moveaxis(np.indices(found.region.shape), 0, -1) + found.region.start
        at = np.moveaxis(voxel_to_roi(inside, VOLUME.geometry, look.roi), -1, 0)
        clipped = np.clip(mean, 1e-6, 1 - 1e-6)
        logits = ndimage.map_coordinates(np.log(clipped / (1 - clipped)), at, order=1)
        np.testing.assert_allclose(found.probability, 1 / (1 + np.exp(-logits)), atol=1e-3)


def test_batches_change_nothing():
    look = asked()._look_back()
    one, many = (map_uncertainty(look, samples=7, batch_size=size) for size in (1, 3))
    assert one.region == many.region
    np.testing.assert_allclose(one.probability, many.probability, atol=1e-6)


def test_the_same_seed_gives_the_same_map_and_another_another():
    session = asked()
    one, again, other = (session.uncertainty(samples=4, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(whole(one), whole(again))
    assert not np.array_equal(whole(one), whole(other))


def test_asking_changes_nothing():
    session = asked(CENTRE, (22, 20, 20))
    shown, prompts = session.prediction, session.prompts
    session.uncertainty(samples=3)
    assert session.prediction is shown
    assert session.prompts == prompts


def test_prompts_that_do_not_move_are_the_answer_and_perfectly_stable():
    session = asked()
    shown = session.prediction.mask.array
    for found in (session.uncertainty(samples=1), session.uncertainty(samples=3, jitter_mm=0)):
        assert found.stability == 1.0
        np.testing.assert_array_equal(whole(found) > 0.5, shown > 0)


def test_moving_more_makes_less_stable():
    session = asked()
    little, much = (session.uncertainty(samples=8, jitter_mm=mm).stability for mm in (0.5, 8.0))
    assert 0 < much < little < 1


def test_what_the_map_leaves_out_is_unlikely_and_it_stays_where_the_model_looked():
    session = asked()
    look = session._look_back()
    found = session.uncertainty(samples=2)
    looked = roi_region(VOLUME.geometry, look.roi)
    assert found.region.clip(VOLUME.shape) == found.region == found.region.intersection(looked)
    everywhere = session.uncertainty(samples=1)
    logits = session.logits[1]
    pasted = paste_values(logits, VOLUME.geometry, look.roi, looked)
    outside = np.ones(VOLUME.shape, bool)
    outside[everywhere.region.slices] = False
    assert pasted[outside[looked.slices]].max(initial=-20) < -3.5
    inside = paste_values(logits, VOLUME.geometry, look.roi, everywhere.region)
    np.testing.assert_allclose(everywhere.probability, 1 / (1 + np.exp(-inside)), atol=1e-4)


@settings(max_examples=10, deadline=None)
@given(
    st.integers(0, 2**16),
    st.floats(0, 100),
    st.tuples(*[st.integers(0, 39)] * 3),
)
def test_moved_prompts_stay_in_the_scan_and_boxes_keep_a_voxel(seed, jitter_mm, corner):
    session = nested_session(volume=VOLUME)
    session.add_box(Box.voxel(corner, tuple(n + 1 for n in corner)))
    session.add_point(corner)
    look = session._look_back()
    given_set, *moved = jittered_prompts(look, samples=4, jitter_mm=jitter_mm, seed=seed)
    assert given_set is look.prompts
    ends = voxel_to_roi([(0, 0, 0), (39, 39, 39)], VOLUME.geometry, look.roi)
    for prompts in moved:
        assert prompts.points.shape == look.prompts.points.shape
        assert (prompts.points >= np.maximum(ends.min(0), 0) - 1e-9).all()
        assert (prompts.points <= np.minimum(ends.max(0), SIZE - 1) + 1e-9).all()
        assert (prompts.box[3:] - prompts.box[:3] >= 1 - 1e-9).all()
        assert prompts.box.min() >= 0
        assert prompts.box.max() <= SIZE


def test_the_map_is_the_same_in_the_world_however_the_file_is_stored():
    flipped = VOLUME.array[::-1].transpose(2, 0, 1)
    affine = np.array([[0, -1, 0, 39], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    stored = Volume(flipped, Geometry(flipped.shape, affine))
    point = (22, 20, 18)
    expected = asked(point).uncertainty(samples=3)
    found = asked(Point.world(VOLUME.geometry.voxel_to_world(point)), volume=stored)
    moved = whole(found.uncertainty(samples=3)).transpose(1, 2, 0)[::-1]
    np.testing.assert_allclose(moved, whole(expected), atol=1e-5)


def test_a_chosen_mask_is_where_the_moved_prompts_go_on_from():
    session = asked()
    mask = np.zeros(VOLUME.shape, bool)
    mask[17:24, 17:24, 17:24] = True
    session.add(MaskPrompt(mask, VOLUME.geometry).as_answer())
    look = session._look_back()
    assert look.fed_logits is session.logits[1]
    assert session.uncertainty(samples=2).num_samples == 2


def test_entropy_is_one_bit_at_one_half_and_none_where_all_agree():
    found = map_of([[[0.0, 0.25, 0.5, 1.0]]])
    np.testing.assert_allclose(found.entropy, [[[0.0, 0.811278, 1.0, 0.0]]], atol=1e-6)
    volume = found.to_volume("entropy")
    assert volume.geometry == found.geometry
    assert volume.array[1, 2, 5] == 1.0
    assert np.count_nonzero(volume.array) == 2


def test_the_next_click_belongs_in_the_middle_of_the_thickest_doubt():
    probability = np.zeros((20, 20, 20))
    probability[2:14, 2:14, 2:14] = 1.0
    probability[2, 2:14, 2:14] = 0.5  # a wide but thin rim
    probability[14:19, 5:10, 5:10] = 0.4  # a doubtful lobe
    found = map_of(probability)
    assert found.suggest_point() == Point.voxel((16 + 1, 7 + 2, 7 + 3), positive=False)
    probability[14:19, 5:10, 5:10] = 0.6
    assert map_of(probability).suggest_point().positive


def test_depth_counts_in_millimetres():
    probability = np.zeros((15, 9, 9))
    probability[0:9, 0:9, 0:1] = 0.5  # one thick slice
    probability[10:15, 0:5, 3:8] = 0.5  # a cube of voxels
    assert map_of(probability, (1, 1, 5)).suggest_point().position == (4 + 1, 4 + 2, 0 + 3)
    assert map_of(probability, (1, 1, 1)).suggest_point().position == (12 + 1, 2 + 2, 5 + 3)


def test_where_nothing_is_uncertain_nothing_is_suggested():
    assert map_of(np.ones((3, 3, 3))).suggest_point() is None
    assert map_of(np.zeros((0, 0, 0))).suggest_point() is None


def test_an_object_that_is_nowhere_has_an_empty_map():
    session = asked(Point.voxel(CENTRE))
    look = session._look_back()
    session.predictor.model.decode_masks = lambda embedding, points, *_, **__: (
        embedding.tokens * 0 - 20,
        points[:, 0, :1] * 0,
    )
    found = map_uncertainty(look, samples=2)
    assert found.region.is_empty
    assert found.suggest_point() is None
    assert not whole(found).any()
    assert found.stability == 1.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"samples": 0}, "1 to 256 samples, got 0"),
        ({"samples": 1000}, "1 to 256 samples"),
        ({"jitter_mm": -1.0}, "0 to 100 mm, got -1"),
        ({"jitter_mm": float("nan")}, "0 to 100 mm"),
    ],
)
def test_numbers_out_of_range_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        asked().uncertainty(**options)


def test_without_a_place_there_is_no_map():
    session = nested_session()
    with pytest.raises(SessionStateError, match="no answer yet"):
        session.uncertainty()
    session.add_point(CENTRE, positive=False)
    with pytest.raises(SessionStateError, match="add a positive point or a box"):
        session.uncertainty()


def test_a_study_knows_how_sure_each_object_is():
    study = Study(nested_session(HesitantModel()), VOLUME)
    first = study.add_object(prompts=[Point.voxel(CENTRE)])
    second = study.add_object()
    expected = asked().uncertainty(samples=3, seed=2)
    np.testing.assert_array_equal(
        whole(study.uncertainty(first, samples=3, seed=2)), whole(expected)
    )
    with pytest.raises(SessionStateError, match=f"Object {second} has no prompt yet"):
        study.uncertainty(second)
