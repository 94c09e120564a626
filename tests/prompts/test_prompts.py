"""Prompts know their frame, refuse nonsense, and move between frames through a geometry."""

import copy
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsam3d.errors import PromptError
from fastsam3d.prompts import Box, MaskPrompt, Point, PromptLog, PromptSet
from fastsam3d.volume import Geometry, Region

# Anisotropic, flipped, permuted, off the origin: a mix-up of frames cannot go unseen.
AFFINE = np.array([[0, -0.4, 0, 30], [0.4, 0, 0, -20], [0, 0, 5.0, 100], [0, 0, 0, 1]])
GEOMETRY = Geometry((10, 12, 8), AFFINE)
MASK = MaskPrompt(np.arange(960).reshape(10, 12, 8) % 7 == 0, GEOMETRY)


@given(st.tuples(st.integers(0, 9), st.integers(0, 11), st.integers(0, 7)))
def test_a_world_point_finds_its_voxel_in_either_frame(voxel: tuple[int, int, int]) -> None:
    x, y, z = GEOMETRY.voxel_to_world(voxel)
    for point in (Point.world((x, y, z)), Point.world((-x, -y, z), "LPS")):
        moved = point.to_voxel(GEOMETRY)
        assert moved.frame == "voxel"
        np.testing.assert_allclose(moved.position, voxel, atol=1e-9)


@pytest.mark.parametrize(
    ("given_at", "expected"),
    [((-0.5, 0, 0), (0, 0, 0)), ((9.5, 11.2, 7.5), (9, 11, 7)), ((1.25, 2, 3), (1.25, 2, 3))],
)
def test_points_within_the_outer_voxels_are_clamped(given_at: tuple, expected: tuple) -> None:
    assert Point.voxel(given_at, positive=False).to_voxel(GEOMETRY) == Point.voxel(
        expected, positive=False
    )


@pytest.mark.parametrize("at", [(-0.6, 0, 0), (10, 0, 0), (0, 11.51, 0), (0, 0, 1e8)])
def test_points_outside_are_refused_with_the_bounds(at: tuple) -> None:
    with pytest.raises(PromptError, match=r"outside of the volume.*\(0, 0, 0\) to \(9, 11, 7\)"):
        Point.voxel(at).to_voxel(GEOMETRY)


def test_a_far_world_point_is_refused_with_its_voxel() -> None:
    with pytest.raises(PromptError, match=r"\(0.0, 0.0, 0.0\) \(RAS\).*at voxel \(50, 75, -20\)"):
        Point.world((0, 0, 0)).to_voxel(GEOMETRY)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((1, 2), "three numbers"),
        ((1, 2, 3, 4), "three numbers"),
        ((1, 2, True), "three numbers"),
        ((1, 2, "3"), "three numbers"),
        ((1, 2, None), "three numbers"),
        ((1, 2, float("nan")), "finite"),
        ((1, 2, float("-inf")), "finite"),
        ((1, 2, 1e308), "finite coordinates below 1e9"),
        ((1, 2, 10**400), "finite"),
    ],
)
def test_coordinates_must_be_three_finite_numbers(values: tuple, words: str) -> None:
    with pytest.raises(PromptError, match=f"Point must have .*{words}"):
        Point.voxel(values)
    with pytest.raises(PromptError, match=f"Box must have .*{words}"):
        Box.world((0, 0, 0), values)


def test_frames_and_signs_are_checked() -> None:
    with pytest.raises(PromptError, match="World frame must be RAS or LPS, got 'voxel'"):
        Point.world((1, 2, 3), "voxel")
    with pytest.raises(PromptError, match="World frame must be RAS or LPS, got 'ras'"):
        Box.world((1, 2, 3), (4, 5, 6), "ras")
    with pytest.raises(PromptError, match="Frame must be one of voxel, RAS, LPS, got 'mni'"):
        Point((1, 2, 3), "mni")
    with pytest.raises(PromptError, match="sign must be True or False, got 1"):
        Point.voxel((1, 2, 3), positive=1)


def test_numpy_numbers_are_numbers() -> None:
    assert (
        Point.voxel(np.array([1, 2, 3]))
        == Point.voxel(np.float32([1, 2, 3]))
        == Point.voxel((1, 2, 3))
    )


def test_reversed_boxes_are_sorted() -> None:
    assert Box.voxel((5, 1, 9), (2, 4, 3)) == Box.voxel((2, 1, 3), (5, 4, 9))


def test_boxes_of_no_size_are_refused() -> None:
    with pytest.raises(PromptError, match="size along each axis"):
        Box.voxel((1, 1, 1), (4, 1, 4))


def test_voxel_boxes_have_whole_corners() -> None:
    with pytest.raises(PromptError, match="whole corners"):
        Box.voxel((0.5, 1, 1), (4, 5, 4))


def test_boxes_are_cut_at_the_border() -> None:
    cut = Box.voxel((-5, 2, 3), (50, 4, 5)).to_voxel(GEOMETRY)
    assert cut.region == Region((0, 2, 3), (10, 4, 5))


def test_boxes_outside_are_refused() -> None:
    with pytest.raises(PromptError, match=r"outside of the volume.*ends at \(10, 12, 8\)"):
        Box.voxel((10, 0, 0), (12, 4, 4)).to_voxel(GEOMETRY)
    with pytest.raises(PromptError, match="outside of the volume"):
        Box.world((1e9, 1e9, 1e9), (-1e9, 9e8, 9e8)).to_voxel(GEOMETRY)


@given(st.data(), st.sampled_from([0.0, 0.45]))
def test_a_world_box_holds_the_centres_inside_it(data: st.DataObject, margin: float) -> None:
    start = data.draw(st.tuples(st.integers(0, 8), st.integers(0, 10), st.integers(0, 6)))
    last = data.draw(
        st.tuples(
            st.integers(start[0] + 1, 9),
            st.integers(start[1] + 1, 11),
            st.integers(start[2] + 1, 7),
        )
    )
    a = GEOMETRY.voxel_to_world(np.subtract(start, margin))
    b = GEOMETRY.voxel_to_world(np.add(last, margin))
    expected = Region(start, tuple(x + 1 for x in last))
    assert Box.world(a, b).to_voxel(GEOMETRY).region == expected
    lps = [corner * (-1, -1, 1) for corner in (a, b)]
    assert Box.world(*lps, "LPS").to_voxel(GEOMETRY).region == expected


def test_a_box_between_two_layers_takes_the_nearest() -> None:
    a, b = GEOMETRY.voxel_to_world([(2, 2, 3.2), (4, 4, 3.4)])
    assert Box.world(a, b).to_voxel(GEOMETRY).region == Region((2, 2, 3), (5, 5, 4))


def test_a_world_box_on_an_oblique_grid_keeps_all_corners() -> None:
    affine = np.eye(4)
    affine[:2, :2] = np.array([[1, -1], [1, 1]]) / np.sqrt(2)
    geometry = Geometry((40, 40, 10), affine)
    box = Box.world((-4, 20, 2), (4, 28, 5)).to_voxel(geometry)
    inside = geometry.world_to_voxel([(-4, 20, 2), (4, 20, 2), (-4, 28, 5), (4, 28, 5)])
    assert np.all(inside >= np.subtract(box.start, 1))
    assert np.all(inside <= box.stop)


def test_the_region_of_a_world_box_is_refused() -> None:
    with pytest.raises(PromptError, match="RAS frame; convert it with to_voxel"):
        _ = Box.world((0, 0, 0), (1, 1, 1)).region


def test_mask_prompts_are_frozen_copies_on_their_grid() -> None:
    array = np.zeros((10, 12, 8), np.uint8)
    prompt = MaskPrompt(array, GEOMETRY)
    assert prompt.is_empty
    array[:] = 1
    assert prompt.is_empty
    assert not prompt.array.flags.writeable
    assert MASK.to_voxel(GEOMETRY) is MASK
    assert MaskPrompt(MASK.array * 300, GEOMETRY) == MASK
    assert hash(MASK) == hash(MaskPrompt(MASK.array, GEOMETRY))
    assert prompt != MASK
    assert MASK != "mask"


def test_mask_prompts_keep_only_the_box_around_the_structure() -> None:
    array = np.zeros((10, 12, 8), np.uint8)
    array[2:5, 3:4, 1:7] = 9
    prompt = MaskPrompt(array, GEOMETRY)
    assert prompt.region == Region((2, 3, 1), (5, 4, 7))
    assert prompt.part.shape == (3, 1, 6)
    np.testing.assert_array_equal(prompt.array, array > 0)
    wider = Region((1, 3, 0), (6, 5, 8))
    assert MaskPrompt.of_part(wider, array[wider.slices], GEOMETRY) == prompt
    assert pickle.loads(pickle.dumps(prompt)) == prompt  # noqa: S301 - our own bytes
    with pytest.raises(AttributeError, match="immutable"):
        prompt.region = wider
    with pytest.raises(PromptError, match="reaches out"):
        MaskPrompt.of_part(Region((8, 0, 0), (11, 1, 1)), np.ones((3, 1, 1)), GEOMETRY)
    with pytest.raises(PromptError, match="box's shape"):
        MaskPrompt.of_part(wider, np.ones((3, 1, 1)), GEOMETRY)


def test_mask_prompts_of_another_kind_are_refused() -> None:
    with pytest.raises(PromptError, match=r"volume's shape \(10, 12, 8\), got \(8, 12, 10\)"):
        MaskPrompt(np.zeros((8, 12, 10), bool), GEOMETRY)
    with pytest.raises(PromptError, match="must hold labels, got float64"):
        MaskPrompt(np.zeros((10, 12, 8)), GEOMETRY)
    with pytest.raises(PromptError, match="another grid"):
        MASK.to_voxel(GEOMETRY.resample(0.7))


def test_a_set_is_ordered_and_never_changes() -> None:
    first, second, box = (
        Point.voxel((1, 2, 3)),
        Point.voxel((4, 5, 6)),
        Box.voxel((0,) * 3, (9,) * 3),
    )
    empty = PromptSet()
    prompts = empty.add(first).add(box, second).add(MASK)
    assert len(empty) == 0
    assert list(prompts) == [first, box, second, MASK]
    assert prompts.points == (first, second)
    assert prompts.boxes == (box,)
    assert prompts.mask is MASK
    assert prompts.without(0).points == (second,)
    assert prompts.without_last() == PromptSet((first, box, second))
    assert hash(prompts.without_last()) == hash(PromptSet((first, box, second)))


@given(st.lists(st.sampled_from([Point.voxel((1, 2, 3)), Box.voxel((0,) * 3, (2,) * 3), MASK])))
def test_undo_takes_back_add(items: list) -> None:
    prompts = PromptSet(tuple(items))
    assert prompts.add(Point.voxel((0, 0, 0))).without_last() == prompts


def test_removing_what_is_not_there_is_refused() -> None:
    with pytest.raises(PromptError, match="no prompt -1 to remove, the set holds 0"):
        PromptSet().without_last()
    with pytest.raises(PromptError, match="no prompt 1 to remove, the set holds 1"):
        PromptSet((MASK,)).without(1)


def test_an_empty_mask_prompt_says_nothing() -> None:
    assert PromptSet((MASK, MaskPrompt(np.zeros((10, 12, 8), bool), GEOMETRY))).mask is None
    assert PromptSet().mask is None


def test_only_prompts_and_not_too_many() -> None:
    with pytest.raises(PromptError, match=r"must be a Point, Box, .* or MaskPrompt, got tuple"):
        PromptSet().add((1, 2, 3))
    with pytest.raises(PromptError, match="At most 10000 prompts"):
        PromptSet((Point.voxel((0, 0, 0)),) * 10_001)


def test_the_latest_of_contradicting_points_counts() -> None:
    yes, no = Point.voxel((1, 2, 3)), Point.voxel((1.2, 2, 2.9), positive=False)
    other = Point.voxel((5, 5, 5))
    assert PromptSet((yes, other, no)).to_voxel(GEOMETRY).points == (other, no)
    assert PromptSet((no, yes, yes)).to_voxel(GEOMETRY).points == (yes, yes)


def test_a_set_moves_to_voxels_whole_or_not() -> None:
    world = PromptSet((Point.world(GEOMETRY.voxel_to_world((1, 2, 3))), MASK))
    moved = world.to_voxel(GEOMETRY)
    np.testing.assert_allclose(moved.points[0].position, (1, 2, 3), atol=1e-9)
    assert moved.mask is MASK
    with pytest.raises(PromptError, match="outside"):
        world.add(Point.voxel((99, 0, 0))).to_voxel(GEOMETRY)


coordinates = st.tuples(*[st.floats(-1e6, 1e6)] * 3)
points = st.builds(Point, coordinates, st.sampled_from(["voxel", "RAS", "LPS"]), st.booleans())
masks = st.binary(min_size=24, max_size=24).map(
    lambda b: MaskPrompt(
        np.frombuffer(b, np.uint8).reshape(2, 3, 4) % 2, Geometry((2, 3, 4), np.eye(4))
    )
)
boxes = st.just(Box.world((0.1, 0.2, 0.3), (1, 2, 3), "LPS")) | st.just(
    Box.voxel((0,) * 3, (2,) * 3)
)


@given(st.lists(points | boxes | masks, max_size=6))
def test_json_is_exact(items: list) -> None:
    prompts = PromptSet(tuple(items))
    assert PromptSet.from_json(prompts.to_json()) == prompts


def point(at: str, frame: str = '"RAS"') -> str:
    prompt = f'{{"type": "point", "frame": {frame}, "at": {at}, "positive": true}}'
    return f'{{"version": 1, "prompts": [{prompt}]}}'


def altered(**changes: object) -> str:
    document = json.loads(PromptSet((MASK,)).to_json())
    document["prompts"][0].update(changes)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "malformed"),
        ('{"version": 2, "prompts": []}', "must be version 1, got 2"),
        ('{"version": 1}', "malformed"),
        ('{"version": 1, "prompts": [1]}', "malformed"),
        ('{"version": 1, "prompts": [{"type": "wand"}]}', "point, .*mask, painted, got 'wand'"),
        (point("[1, 2, NaN]"), "not JSON"),
        (point("[1, 2, 3]", frame="[]"), "Frame must be one of"),
        (point("7"), "malformed"),
        (altered(runs=[961]), "must fill 960 voxels"),
        (altered(runs=[-1, 961]), "must fill 960 voxels"),
        (altered(runs=[960.0]), "must fill 960 voxels"),
        (altered(runs=None), "malformed"),
        (altered(shape=[2**20] * 3, runs=[2**60]), "at most 2.31 voxels"),
        (altered(affine=[[0] * 4] * 4), "malformed"),
    ],
)
def test_foreign_json_is_refused(text: str, words: str) -> None:
    with pytest.raises(PromptError, match=words):
        PromptSet.from_json(text)


def test_long_json_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastsam3d.prompts.plain.MAX_JSON_CHARACTERS", 10)
    with pytest.raises(PromptError, match="11 characters; at most 10 fit"):
        PromptSet.from_json(" " * 11)


def test_a_mask_that_is_the_answer_is_another_prompt_than_one_to_start_from() -> None:
    chosen = MASK.as_answer()
    assert chosen.is_answer
    assert not MASK.is_answer
    assert chosen != MASK
    np.testing.assert_array_equal(chosen.array, MASK.array)
    assert copy.deepcopy(chosen) == chosen.to_voxel(GEOMETRY) == chosen
    assert hash(chosen) == hash(MASK.as_answer())


def test_a_choice_survives_json_with_voxels_inside_or_elsewhere() -> None:
    log = PromptLog().add(Point.voxel((1, 2, 3)), MASK).add(MASK.as_answer())
    assert PromptLog.from_json(log.to_json()) == log
    plain = log.to_plain(lambda _: {"bits": "here"})
    assert PromptLog.from_plain(plain, lambda _: MASK) == log
