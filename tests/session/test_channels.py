"""Channels: one image of several, or all of them combined, as part of what answers a prompt."""

import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - as everybody calls it
import torch

from fastsam3d.errors import ConfigError, GeometryError, StudyFileError
from fastsam3d.io import read_time_points
from fastsam3d.prompts import Point
from fastsam3d.session import Study
from fastsam3d.session.channels import channel_names, select_channel, stack_channels
from fastsam3d.session.study_file import volume_hash
from fastsam3d.volume import Geometry, Volume
from tests.session.ambiguous_model import CENTRE, nested_session, nested_volume

CORE_BRIGHT = nested_volume([(6.0, 1000)])
BODY_BRIGHT = nested_volume([(12.0, 1000)], seed=1)
STUDY = stack_channels({"T1": CORE_BRIGHT, "T2": BODY_BRIGHT})
FLAT = Volume(np.zeros(STUDY.shape, np.float32), STUDY.geometry)


def answer(volume, channel="all", point=CENTRE):
    session = nested_session(volume=volume)
    session.set_channel(channel)
    return session.add_point(point)


def same(a, b):
    return a.region == b.region and np.array_equal(a.region_mask, b.region_mask)


@pytest.mark.parametrize(("name", "alone"), [("T1", CORE_BRIGHT), ("T2", BODY_BRIGHT)])
def test_a_chosen_channel_is_as_if_there_were_no_other(name, alone):
    assert same(answer(STUDY, name), answer(alone))


@pytest.mark.parametrize("combination", ["logits", "probabilities"])
def test_all_channels_together_are_the_mean_over_the_channels(combination):
    session = nested_session(volume=replace(STUDY, combination=combination))
    session.add_point(CENTRE)
    roi, combined = session.logits
    alone = []
    for channel in STUDY.channels:
        one = nested_session(volume=channel)
        one.add_point(CENTRE)
        assert one.logits[0] == roi
        alone.append(one.logits[1])
    if combination == "logits":
        torch.testing.assert_close(combined, torch.stack(alone).mean(0))
    else:
        mean = torch.stack([logits.sigmoid() for logits in alone]).mean(0)
        torch.testing.assert_close(combined.sigmoid(), mean, atol=2e-6, rtol=0)


def test_every_round_combines_what_every_channel_says_about_the_same_prompts():
    session = nested_session(volume=STUDY)
    session.add_point(CENTRE)
    _, first = session.logits
    session.add_point((20, 20, 29))
    left, right = session.predictor.model.decoded[-2:]
    assert torch.equal(left["points"], right["points"])
    assert torch.equal(left["mask"][0, 0], first)
    assert torch.equal(right["mask"][0, 0], first)


def test_a_constant_channel_has_no_say():
    assert same(answer(stack_channels([BODY_BRIGHT, FLAT])), answer(BODY_BRIGHT))
    blank = answer(stack_channels([FLAT, FLAT]))
    assert blank.region.is_empty
    assert "constant" in blank.warnings[0]


def test_changing_the_channel_answers_anew_and_coming_back_is_exact_and_free():
    session = nested_session(volume=STUDY)
    assert session.channel == "all"
    together = session.add_point(CENTRE)
    alone = session.set_channel("T1")
    assert session.channel == "T1"
    assert not same(alone, together)
    decoded = len(session.predictor.model.decoded)
    assert same(session.set_channel("all"), together)
    assert same(session.set_channel("T1"), alone)
    assert len(session.predictor.model.decoded) == decoded
    again = session.add_point((20, 20, 25))
    assert same(session.undo(), alone)
    assert same(session.add_point((20, 20, 25)), again)


def test_candidates_and_uncertainty_are_about_the_channel_in_use():
    session = nested_session(volume=STUDY)
    session.set_channel("T2")
    session.add_point(CENTRE)
    alone = nested_session(volume=BODY_BRIGHT)
    alone.add_point(CENTRE)
    for a, b in zip(session.candidates(), alone.candidates(), strict=True):
        assert a.mask.equals(b.mask)
    a, b = (one.uncertainty(samples=3) for one in (session, alone))
    np.testing.assert_array_equal(a.probability, b.probability)
    session.set_channel("all")
    assert len(session.candidates()) >= 1
    assert session.uncertainty(samples=3).num_samples == 3


def test_a_new_volume_starts_with_all_of_its_channels():
    session = nested_session(volume=STUDY)
    session.set_channel("T1")
    session.set_volume(BODY_BRIGHT)
    assert session.channel == "all"


def test_each_object_of_a_study_has_its_channel(tmp_path):
    study = Study(nested_session(), STUDY)
    core = study.add_object(prompts=[Point.voxel(CENTRE)], channel="T1")
    body = study.add_object(prompts=[Point.voxel(CENTRE)])
    assert [item.channel for item in study.objects] == ["T1", "all"]
    study.set_overlap("allow")
    assert np.array_equal(study.mask(core).array, answer(CORE_BRIGHT).mask.array)
    study.set_channel(body, "T2")
    assert np.array_equal(study.mask(body).array, answer(BODY_BRIGHT).mask.array)
    assert study.replay() == ()
    study.save(tmp_path / "a.study")
    again = Study.load(tmp_path / "a.study", nested_session(), STUDY)
    assert [item.channel for item in again.objects] == ["T1", "T2"]
    assert again.replay() == ()
    study.undo()
    assert np.array_equal(study.mask(body).array, answer(STUDY).mask.array)
    empty = study.add_object()
    study.set_channel(empty, "T2")
    study.add(empty, Point.voxel(CENTRE))
    assert np.array_equal(study.mask(empty).array, answer(BODY_BRIGHT).mask.array)


def test_a_study_file_belongs_to_all_channels_and_to_how_they_are_combined(tmp_path):
    Study(nested_session(), STUDY).save(tmp_path / "a.study")
    others = [
        replace(STUDY, combination="probabilities"),
        stack_channels({"T1": CORE_BRIGHT, "PD": BODY_BRIGHT}),
        stack_channels({"T1": CORE_BRIGHT, "T2": CORE_BRIGHT}),
        CORE_BRIGHT,
    ]
    assert len({volume_hash(volume) for volume in (STUDY, *others)}) == 5
    for volume in others:
        with pytest.raises(StudyFileError, match="another volume"):
            Study.load(tmp_path / "a.study", nested_session(), volume)


def test_a_file_with_a_channel_that_is_not_there_is_damaged(tmp_path, monkeypatch):
    study = Study(nested_session(), CORE_BRIGHT)
    study.add_object()
    dumps = json.dumps
    monkeypatch.setattr(
        "fastsam3d.session.study_file.json.dumps",
        lambda plain, **options: dumps(plain, **options).replace('"all"', '"T9"'),
    )
    study.save(tmp_path / "a.study")
    with pytest.raises(StudyFileError, match=r"damaged.*T9"):
        Study.load(tmp_path / "a.study", nested_session(), CORE_BRIGHT)


def test_the_first_channel_is_what_is_shown_and_measured():
    assert STUDY.array is CORE_BRIGHT.array
    assert channel_names(STUDY) == ("all", "T1", "T2")
    assert channel_names(CORE_BRIGHT) == ("all",)
    assert select_channel(STUDY, "T2") is BODY_BRIGHT
    assert select_channel(STUDY, "all") is STUDY


def test_channels_of_a_file_with_four_axes(tmp_path):
    images = [sitk.GetImageFromArray(channel.array.T) for channel in STUDY.channels]
    sitk.WriteImage(sitk.JoinSeries(images), str(tmp_path / "mr.nii.gz"))
    study = stack_channels(read_time_points(tmp_path / "mr.nii.gz"))
    assert study.names == ("0", "1")
    np.testing.assert_array_equal(study.channels[1].array, BODY_BRIGHT.array)
    assert answer(study, "1").mask.array[CENTRE] == 1


@pytest.mark.parametrize(
    ("channels", "words"),
    [
        ({}, "at least one channel"),
        ({"": CORE_BRIGHT}, "different names"),
        ({"all": CORE_BRIGHT}, "other than 'all'"),
        ([CORE_BRIGHT] * 17, "1 to 16 channels"),
    ],
)
def test_unusable_channels_are_refused(channels, words):
    with pytest.raises(ConfigError, match=words):
        stack_channels(channels)


def test_channels_on_different_grids_are_refused_by_name():
    moved = Geometry(STUDY.shape, np.diag([1, 1, 2.0, 1]))
    with pytest.raises(GeometryError, match=r"'T2' lies on another grid than 'T1'.*resample"):
        stack_channels({"T1": CORE_BRIGHT, "T2": Volume(BODY_BRIGHT.array, moved)})


def test_a_channel_on_another_grid_is_brought_onto_that_of_the_first_where_asked_to():
    flipped = np.diag([-1.0, 1, 1, 1])
    flipped[0, 3] = STUDY.shape[0] - 1
    other = Volume(np.ascontiguousarray(BODY_BRIGHT.array[::-1]), Geometry(STUDY.shape, flipped))
    study = stack_channels({"T1": CORE_BRIGHT, "T2": other}, resample=True)
    assert study.channels[0] is CORE_BRIGHT
    np.testing.assert_array_equal(study.channels[1].array, BODY_BRIGHT.array)
    assert same(answer(study, "T2"), answer(STUDY, "T2"))


def test_unknown_channels_and_combinations_are_refused():
    session = nested_session(volume=STUDY)
    for ask in (lambda: session.set_channel("PD"), lambda: answer(CORE_BRIGHT, "T1")):
        with pytest.raises(ConfigError, match="choose of all"):
            ask()
    session.add_point(CENTRE)
    with pytest.raises(ConfigError, match=r"There is no channel 'PD'.*all, T1, T2"):
        session.set_channel("PD")
    assert session.channel == "all"
    with pytest.raises(ConfigError, match="logits or probabilities, got 'median'"):
        replace(STUDY, combination="median")
    study = Study(nested_session(), STUDY)
    with pytest.raises(ConfigError, match="There is no channel"):
        study.add_object(channel="PD")
    assert study.objects == ()
