"""Objects on other scans: the mask goes by world coordinates, the model looks again there."""

import numpy as np
import pytest

from fastsam3d.errors import GeometryError, PromptError, SessionStateError, VolumeReadError
from fastsam3d.io import write_volume
from fastsam3d.prompts import MaskPrompt, Point
from fastsam3d.session import Predictor, ScalePolicy, Series, Session, Study, propagate
from fastsam3d.session.object_mask import ObjectMask
from fastsam3d.session.propagate import resample_mask
from fastsam3d.volume import Geometry, Volume
from tests.session.phantoms import BrightModel, ball_truth, ball_volume, dice

SHAPE = (24, 24, 24)


def ball_at(x, radius_mm=5):
    return ball_volume(shape=SHAPE, centre_mm=(x, 12, 12), radius_mm=radius_mm)


def make_session():
    policy = ScalePolicy(spacings_mm=(1.0,), max_refinements=0, max_growths=0)
    return Session(Predictor(BrightModel()), policy=policy)


def make_series(**options):
    volumes = [ball_at(x) for x in (9, 11, 13, 15)]
    return Series(Predictor(BrightModel()), volumes, **options)


def clicked_series(**options):
    series = make_series(**options)
    ball = series[0].add_object("ball", colour=(9, 8, 7), prompts=[Point.voxel((9, 12, 12))])
    return series, ball


AFFINES = {
    "finer": np.diag([0.5, 0.6, 0.7, 1]),
    "coarser": np.diag([1.4, 1.3, 1.2, 1]),
    "LPS": np.array([[-1.0, 0, 0, 23], [0, -1, 0, 23], [0, 0, 1, 0], [0, 0, 0, 1]]),
    "oblique": np.array([[0.8, 0.6, 0, -4], [-0.6, 0.8, 0, 8], [0, 0, 1, 0], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("kind", AFFINES)
def test_a_mask_keeps_its_place_in_the_world(kind):
    source = Geometry(SHAPE, np.eye(4))
    target = Geometry((48, 48, 48), AFFINES[kind])
    here = ObjectMask.cropped(source.region, ball_truth(source, (12, 12, 12), 6))
    there = resample_mask(here, source, target).to_array(target.shape)
    assert dice(there, ball_truth(target, (12, 12, 12), 6)) > 0.93


def test_a_mask_on_its_own_grid_is_itself_and_one_elsewhere_is_empty():
    geometry = Geometry(SHAPE, np.eye(4))
    mask = ObjectMask.cropped(geometry.region, ball_truth(geometry, (12, 12, 12), 6))
    assert resample_mask(mask, geometry, geometry) is mask
    far = Geometry(SHAPE, np.array([[1.0, 0, 0, 99], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    assert resample_mask(mask, geometry, far).is_empty


def test_an_object_is_found_again_on_another_scan():
    first = Study(make_session(), ball_at(11))
    ball = first.add_object("ball", colour=(9, 8, 7), prompts=[Point.voxel((11, 12, 12))])
    fine = ball_volume(shape=(48, 48, 48), spacing=(0.5,) * 3, centre_mm=(13, 12, 12), radius_mm=5)
    second = Study(make_session(), fine)
    second.add_object("other")
    found = propagate(first, ball, second)
    item = second.state.find(found)
    assert (found, item.name, item.colour) == (2, "ball", (9, 8, 7))
    assert dice(second.mask(found).array, ball_truth(fine.geometry, (13, 12, 12), 5)) > 0.9
    prior, point = second.log(found).prompts.prompts
    assert isinstance(prior, MaskPrompt)
    assert prior.array[tuple(int(v) for v in point.position)]
    second.undo()
    assert len(second.objects) == 1


def test_what_cannot_be_propagated_is_said():
    first = Study(make_session(), ball_at(11))
    empty = first.add_object("empty")
    with pytest.raises(SessionStateError, match="is empty; give it prompts"):
        propagate(first, empty, Study(make_session(), ball_at(11)))
    with pytest.raises(SessionStateError, match="no object 7"):
        propagate(first, 7, Study(make_session(), ball_at(11)))


def test_an_object_outside_of_the_other_scan_is_refused():
    first = Study(make_session(), ball_at(11))
    ball = first.add_object(prompts=[Point.voxel((11, 12, 12))])
    shift = np.eye(4)
    shift[0, 3] = 99.0
    other = Study(make_session(), Volume(ball_at(11).array, Geometry(SHAPE, shift)))
    with pytest.raises(PromptError, match="outside of the other scan"):
        propagate(first, ball, other)
    assert other.objects == ()


def test_an_object_follows_through_time_with_its_id_and_name():
    series, ball = clicked_series()
    told: list[tuple[int, int]] = []
    assert series.propagate(ball, start=0, on_progress=lambda *n: told.append(n)) == (1, 2, 3)
    assert told == [(1, 3), (2, 3), (3, 3)]
    for time, x in enumerate((9, 11, 13, 15)):
        study = series[time]
        (item,) = study.objects
        assert (item.id, item.name, item.colour) == (ball, "ball", (9, 8, 7))
        truth = ball_truth(study.volume.geometry, (x, 12, 12), 5)
        assert dice(study.mask(ball).array, truth) > 0.9


def test_it_goes_back_in_time_too_and_ends_where_it_is_told():
    series = make_series()
    ball = series[3].add_object(prompts=[Point.voxel((15, 12, 12))])
    assert series.propagate(ball, start=3, stop=1) == (2, 1)
    assert series[0].objects == ()


def test_a_copy_is_the_mask_itself():
    series, ball = clicked_series()
    series.copy(ball, source=0, target=2, refine=False)
    np.testing.assert_array_equal(series[2].mask(ball).array, series[0].mask(ball).array)


def test_a_locked_time_point_stays_and_is_gone_on_from():
    series, ball = clicked_series()
    series.copy(ball, source=0, target=1)
    series[1].lock(ball)
    kept = series[1].mask(ball).array
    assert series.propagate(ball, start=0) == (2, 3)
    np.testing.assert_array_equal(series[1].mask(ball).array, kept)


def test_propagating_can_be_cancelled_and_undone():
    series, ball = clicked_series()
    stops = iter((False, True))
    assert series.propagate(ball, start=0, is_cancelled=lambda: next(stops)) == (1,)
    series[1].undo()
    assert series[1].objects == ()


def test_embeddings_are_kept_for_few_time_points_and_masks_for_all():
    series, ball = clicked_series()
    series.propagate(ball, start=0)
    held = [len(series._studies[time].session._cache) for time in range(4)]
    assert held[:2] == [0, 0]
    assert min(held[2:]) > 0
    assert series[0].replay() == ()


def test_a_series_is_saved_and_loaded(tmp_path):
    series, ball = clicked_series(autosave=tmp_path)
    series.propagate(ball, start=0, stop=2)
    assert repr(series).startswith("Series(4 time points, Geometry((24, 24, 24)")
    names = ["time0000.study", "time0001.study", "time0002.study"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    again = Series.load(tmp_path, Predictor(BrightModel()), series.volumes)
    for time in range(3):
        np.testing.assert_array_equal(again[time].mask(ball).array, series[time].mask(ball).array)
    assert again[3].objects == ()
    assert again.propagate(ball, start=2) == (3,)


def test_a_file_with_time_is_opened(tmp_path, monkeypatch):
    session = make_session()
    monkeypatch.setattr(Session, "from_pretrained", lambda *_, **__: session)
    write_volume(ball_at(11), tmp_path / "one.nii")
    series = Series.from_pretrained(tmp_path / "one.nii", locked_negatives=1)
    assert len(series) == 1
    assert series[0].locked_negatives == 1


def test_wrong_series_and_time_points_are_refused():
    with pytest.raises(VolumeReadError, match="at least one"):
        Series(Predictor(BrightModel()), [])
    other = ball_volume(shape=SHAPE, spacing=(1, 1, 2))
    with pytest.raises(GeometryError, match="at time 1"):
        Series(Predictor(BrightModel()), [ball_at(11), other])
    series, ball = clicked_series()
    for time in (-1, 4):
        with pytest.raises(SessionStateError, match="0 to 3"):
            series[time]
    with pytest.raises(SessionStateError, match="no object"):
        series.propagate(99, start=0)
    with pytest.raises(SessionStateError, match="0 to 3"):
        series.copy(ball, source=0, target=9)
    with pytest.raises(SessionStateError, match="0 to 3"):
        series.propagate(ball, start=0, stop=4)
    assert series[1].objects == ()
