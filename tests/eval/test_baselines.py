"""Every baseline on phantoms: it finds what it can see, obeys clicks and never needs the truth."""

import sys

import numpy as np
import pytest

from fastsam3d.errors import ConfigError, PromptError, SessionStateError
from fastsam3d.eval.baselines.base import Baseline
from fastsam3d.eval.baselines.workbox import cut_workbox, plant_seeds
from fastsam3d.eval.segmenters import create_segmenter
from fastsam3d.prompts import Box, MaskPrompt, Point, PromptSet
from fastsam3d.segmenter import Segmenter
from fastsam3d.volume import Geometry, Region, Volume
from tests.session.phantoms import ball_truth, dice

SEEING = ("region_growing", "random_walker", "watershed")
NAMES = ("ball:9.3", *SEEING)
CENTRE = (20, 20, 20)


def blobs(
    *centres_mm: tuple[float, float, float],
    shape=(40, 40, 40),
    spacing=(1.0, 1.0, 1.0),
    radius_mm: float = 9.3,
) -> Volume:
    """Bright balls with hard edges on a dark ground, in noise of 5 % of the step."""
    geometry = Geometry(shape, np.diag([*spacing, 1.0]))
    truth = np.any([ball_truth(geometry, c, radius_mm) for c in centres_mm or (CENTRE,)], axis=0)
    noise = np.random.default_rng(3).normal(0, 50, shape)
    return Volume((1000 * truth + noise).astype(np.int16), geometry)


def two_blobs() -> Volume:
    """Two equal balls that touch, at i = 14 and i = 26."""
    return blobs((14, 20, 20), (26, 20, 20), radius_mm=7)


def make(name: str, volume: Volume) -> Baseline:
    segmenter = create_segmenter(name)
    assert isinstance(segmenter, Baseline)
    segmenter.set_volume(volume)
    return segmenter


@pytest.mark.parametrize("name", NAMES)
def test_one_click_finds_a_bright_blob(name: str) -> None:
    volume = blobs()
    truth = ball_truth(volume.geometry, CENTRE)
    prediction = make(name, volume).add_point(CENTRE)

    assert dice(prediction.mask.array, truth) > 0.9
    assert prediction.region_mask.shape == prediction.region.shape
    assert prediction.click_ms > 0


@pytest.mark.parametrize("name", SEEING)
def test_voxels_may_be_thick_and_the_object_dark(name: str) -> None:
    volume = blobs(shape=(40, 40, 14), spacing=(1.0, 1.0, 3.0))
    dark = Volume(1000 - volume.array, volume.geometry)
    truth = ball_truth(volume.geometry, CENTRE)

    assert dice(make(name, dark).add_point((20, 20, 7)).mask.array, truth) > 0.85


@pytest.mark.parametrize("name", NAMES)
def test_a_negative_click_removes_what_it_points_at(name: str) -> None:
    segmenter = make(name, two_blobs())
    segmenter.add_point((14, 20, 20))
    segmenter.add_point((26, 20, 20))
    assert segmenter.add_point((27, 20, 20), positive=False).mask.array[27, 20, 20] == 0
    segmenter.reset()
    segmenter.add_point((14, 20, 20))
    after = segmenter.add_point(Point.voxel((26, 20, 20), positive=False)).mask.array

    assert after[14, 20, 20]
    assert not after[26, 20, 20]
    assert after[22:].mean() < after[:18].mean()


@pytest.mark.parametrize("name", NAMES)
def test_undo_and_reset_bring_back_earlier_answers(name: str) -> None:
    segmenter = make(name, two_blobs())
    first = segmenter.add_point((14, 20, 20)).mask.array
    segmenter.add_point((26, 20, 20), positive=False)
    back = segmenter.undo()

    assert back is not None
    assert np.array_equal(back.mask.array, first)
    assert len(segmenter.prompts) == 1
    assert segmenter.undo() is None
    with pytest.raises(SessionStateError, match="nothing to undo"):
        segmenter.undo()
    segmenter.reset()
    assert np.array_equal(segmenter.add_point((14, 20, 20)).mask.array, first)


@pytest.mark.parametrize("name", NAMES)
def test_changes_pasted_one_by_one_make_the_mask(name: str) -> None:
    segmenter = make(name, two_blobs())
    array = np.zeros((40, 40, 40), np.uint8)
    for at, positive in (((14, 20, 20), True), ((26, 20, 20), True), ((27, 21, 20), False)):
        prediction = segmenter.add_point(at, positive=positive)
        prediction.paste_changes(array)
    assert np.array_equal(array, prediction.mask.array)


@pytest.mark.parametrize("name", NAMES)
def test_a_box_alone_is_answered_inside_of_it(name: str) -> None:
    volume = blobs()
    mask = make(name, volume).add_box(Box.voxel((11, 11, 11), (30, 30, 30))).mask.array
    outside = mask.copy()
    outside[11:30, 11:30, 11:30] = 0

    assert not outside.any()
    assert dice(mask, ball_truth(volume.geometry, CENTRE)) > 0.8


@pytest.mark.parametrize("name", NAMES)
def test_wrong_prompts_are_refused_with_a_sentence(name: str) -> None:
    segmenter = create_segmenter(name)
    assert isinstance(segmenter, Segmenter)
    with pytest.raises(SessionStateError, match="set_volume"):
        segmenter.add_point(CENTRE)
    volume = blobs()
    segmenter.set_volume(volume)
    with pytest.raises(PromptError, match="no prompt"):
        segmenter.predict(PromptSet())
    with pytest.raises(PromptError, match="outside of the volume"):
        segmenter.add_point((99, 0, 0))
    with pytest.raises(PromptError, match="takes points and boxes"):
        segmenter.add_mask(MaskPrompt(np.ones(volume.shape, bool), volume.geometry))
    assert len(segmenter.prompts) == 0


@pytest.mark.parametrize("name", NAMES)
def test_clicks_on_background_alone_find_nothing(name: str) -> None:
    prediction = make(name, blobs()).add_point(CENTRE, positive=False)
    assert not prediction.mask.array.any()
    assert prediction.predicted_quality == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 40, 40), (40, 1, 9)])
def test_flat_and_tiny_volumes_get_an_answer(name: str, shape: tuple[int, int, int]) -> None:
    volume = Volume(np.full(shape, 7, np.uint8), Geometry(shape, np.eye(4)))
    segmenter = make(name, volume)
    at = tuple(n // 2 for n in shape)
    assert segmenter.add_point(at).mask.array[at]
    assert segmenter.add_point((0, 0, 0), positive=False).mask.shape == shape


@pytest.mark.parametrize("name", SEEING)
def test_a_second_look_at_a_small_object_is_finer(name: str, monkeypatch) -> None:
    volume = blobs((36, 36, 36), shape=(72, 72, 72), radius_mm=6)
    segmenter = make(name, volume)
    monkeypatch.setattr(type(segmenter), "max_blocks", 40_000)
    prediction = segmenter.add_point((36, 36, 36))

    assert prediction.spacing_mm == 1.0
    assert prediction.roi.shape == (72, 72, 72)
    assert dice(prediction.mask.array, ball_truth(volume.geometry, (36, 36, 36), 6)) > 0.9


def test_blocks_average_voxels_and_come_back_where_they_were() -> None:
    volume = blobs(shape=(40, 41, 20), spacing=(1.0, 1.0, 2.0))
    work = cut_workbox(volume, Region((4, 0, 0), (40, 41, 20)), 10_000)

    assert work.factors == (2, 2, 1)
    assert work.array.shape == (18, 21, 20)
    assert work.spacing == (2.0, 2.0, 2.0)
    assert work.is_open == ((True, False), (False, False), (False, False))
    assert work.blocks_of(np.array([[4, 0, 0], [39, 40, 19], [3, 0, 0]])).tolist() == [
        [0, 0, 0],
        [17, 20, 19],
    ]
    bright = work.voxels_of(work.array)
    assert dice(bright, ball_truth(volume.geometry, CENTRE)[4:]) > 0.95


def test_the_rim_is_where_the_volume_goes_on() -> None:
    volume = blobs()
    inner = cut_workbox(volume, Region((5, 0, 0), (40, 40, 40)), 10**6).rim()
    assert inner[0].all()
    assert not inner[1:].any()
    whole = cut_workbox(volume, volume.geometry.region, 10**6).rim()
    assert whole[0].all()
    assert whole[:, :, -1].all()
    assert not whole[1:-1, 1:-1, 1:-1].any()


def test_a_clicked_block_keeps_its_sign_next_to_others() -> None:
    work = cut_workbox(blobs(), Region((0, 0, 0), (40, 40, 40)), 10**6)
    seeds = plant_seeds(work, np.array([[10, 10, 10]]), np.array([[11, 10, 10]]), 3.0)
    assert seeds[10, 10, 10] == 1
    assert seeds[11, 10, 10] == 2
    assert seeds[9, 10, 10] == 1


def test_baselines_refuse_arguments_and_options_that_they_do_not_know() -> None:
    for spec in ("watershed:3", "ball:wide", "ball:-1", "ball:inf"):
        with pytest.raises(ConfigError, match="got"):
            create_segmenter(spec)
    with pytest.raises(ConfigError, match="options of models"):
        create_segmenter("watershed", zero_image=True)
    with pytest.raises(ConfigError, match="options of models"):
        create_segmenter("ball", spacing_mm=1.5)


@pytest.mark.parametrize("name", ["random_walker", "watershed"])
def test_a_missing_library_is_named_with_the_remedy(name: str, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ConfigError, match=r"fastsam3d\[eval\]"):
        make(name, blobs()).add_point(CENTRE)
