"""Studies: many objects, who owns which voxel, locks, merging and splitting, exact undo."""

import numpy as np
import pytest

from fastsam3d.errors import ConfigError, PromptError, SessionStateError
from fastsam3d.io import read_mask
from fastsam3d.io.segmentation import Code, Terminology
from fastsam3d.prompts import Box, MaskPrompt, Point
from fastsam3d.session import (
    KeepComponent,
    Predictor,
    RemoveSmall,
    ScalePolicy,
    Session,
    Smooth,
    Study,
)
from fastsam3d.session.objects import colour_of
from fastsam3d.volume import Geometry, Mask, Region, Volume
from tests.session.phantoms import BrightModel, ball_volume

SHAPE = (24, 24, 24)
LIVER = Terminology(Code("SCT", "123037004", "Anatomical Structure"), Code("SCT", "1", "Liver"))


def make_session() -> Session:
    policy = ScalePolicy(spacings_mm=(1.0,), max_refinements=0, max_growths=0)
    return Session(Predictor(BrightModel()), policy=policy)


def make_study(**options: object) -> Study:
    return Study(make_session(), ball_volume(shape=SHAPE, centre_mm=(12, 12, 12), radius_mm=5),
                 **options)  # fmt: skip


def block(*ranges: tuple[int, int]) -> np.ndarray:
    array = np.zeros(SHAPE, np.uint8)
    array[tuple(slice(*pair) for pair in ranges)] = 1
    return array


A, B, C = (
    block((2, 10), (2, 10), (2, 10)),
    block((6, 14), (2, 10), (2, 10)),
    block((6, 8), (2, 20), (2, 10)),
)


def with_masks(study: Study, *arrays: np.ndarray) -> list[int]:
    ids = []
    for array in arrays:
        ids.append(study.add_object())
        study.add(ids[-1], MaskPrompt(array, study.volume.geometry))
    return ids


def mask_of(array: np.ndarray) -> MaskPrompt:
    return MaskPrompt(array, make_study().volume.geometry)


def shown(study: Study, object_id: int) -> np.ndarray:
    return study.mask(object_id).array


def test_an_object_answers_prompts_as_a_session_does() -> None:
    study, session = make_study(), make_session()
    session.set_volume(study.volume)
    ball = study.add_object("ball", terminology=LIVER)
    for prompt in (Point.voxel((12, 12, 12)), Box.voxel((5, 5, 5), (20, 20, 20))):
        ours, theirs = study.add(ball, prompt), session.add(prompt)
        np.testing.assert_array_equal(ours.mask.array, theirs.mask.array)
        assert ours.predicted_quality == theirs.predicted_quality
        assert ours.roi == theirs.roi
    assert ours.mask.array.any()
    (item,) = study.objects
    assert (item.id, item.name, item.terminology) == (1, "ball", LIVER)
    assert len(study.log(ball)) == 2


def test_prompts_can_be_removed_edited_undone_and_redone() -> None:
    study = make_study()
    ball = study.add_object()
    first = study.add(ball, Point.voxel((12, 12, 12))).mask.array
    second = study.add(ball, Point.voxel((16, 12, 12), positive=False)).mask.array
    third = study.add(ball, Point.voxel((20, 20, 20))).mask.array
    without = study.remove_prompt(ball, 2).mask.array
    assert without[16, 12, 12] == 1
    np.testing.assert_array_equal(study.undo_prompt(ball).mask.array, third)
    np.testing.assert_array_equal(study.redo_prompt(ball).mask.array, without)
    np.testing.assert_array_equal(study.remove_prompt(ball, 3).mask.array, first)
    study.undo()
    study.undo()
    np.testing.assert_array_equal(shown(study, ball), third)
    edited = study.edit_prompt(ball, 3, Point.voxel((2, 2, 2)))
    assert edited.mask.array[2, 2, 2] == 1
    assert edited.mask.array[20, 20, 20] == 0
    assert [entry.id for entry in study.log(ball).entries] == [1, 2, 3]
    assert second[16, 12, 12] == 0


def test_an_object_without_prompts_is_empty() -> None:
    study = make_study()
    ball = study.add_object()
    assert not shown(study, ball).any()
    study.add(ball, Point.voxel((12, 12, 12)))
    emptied = study.remove_prompt(ball, 1)
    assert emptied.region.is_empty
    assert emptied.predicted_quality == 0
    with pytest.raises(PromptError, match="no prompt to answer"):
        study.add(ball)


@pytest.mark.parametrize(
    ("overlap", "first", "second"),
    [
        ("last_wins", A & ~B & 1, B),
        ("first_wins", A, B & ~A & 1),
        ("allow", A, B),
    ],
)
def test_who_owns_a_voxel_is_explicit(overlap: str, first: np.ndarray, second: np.ndarray) -> None:
    study = make_study(overlap=overlap)
    a, b = with_masks(study, A, B)
    np.testing.assert_array_equal(shown(study, a), first)
    np.testing.assert_array_equal(shown(study, b), second)


def test_the_order_of_the_list_decides_and_nothing_is_lost() -> None:
    study = make_study()
    a, b = with_masks(study, A, B)
    study.move(b, 0)
    np.testing.assert_array_equal(shown(study, a), A)
    study.delete(a)
    np.testing.assert_array_equal(shown(study, b), B)
    study.undo()
    study.set_overlap("first_wins")
    np.testing.assert_array_equal(shown(study, b), B)
    np.testing.assert_array_equal(shown(study, a), A & ~B & 1)


@pytest.mark.parametrize("overlap", ["last_wins", "first_wins"])
def test_a_locked_object_is_cut_out_of_others(overlap: str) -> None:
    study = make_study(overlap=overlap)
    (a,) = with_masks(study, A)
    study.lock(a)
    b, c = with_masks(study, B, C)
    np.testing.assert_array_equal(shown(study, a), A)
    assert not np.any(shown(study, b) & A)
    assert not np.any(shown(study, c) & A)
    study.unlock(a)
    assert np.any(shown(study, a) != A) == (overlap == "last_wins")


def test_where_overlaps_are_allowed_a_lock_protects_the_object_alone() -> None:
    study = make_study(overlap="allow")
    (a,) = with_masks(study, A)
    study.lock(a)
    (b,) = with_masks(study, B)
    np.testing.assert_array_equal(shown(study, a), A)
    np.testing.assert_array_equal(shown(study, b), B)


def test_a_locked_object_cannot_be_changed_but_renamed() -> None:
    study = make_study()
    a, b = with_masks(study, A, B)
    study.lock(a)
    for change in (
        lambda: study.add(a, Point.voxel((3, 3, 3))),
        lambda: study.remove_prompt(a, 1),
        lambda: study.edit_prompt(a, 1, Point.voxel((3, 3, 3))),
        lambda: study.undo_prompt(a),
        lambda: study.set_steps(a, KeepComponent()),
        lambda: study.delete(a),
        lambda: study.merge(a, b),
        lambda: study.merge(b, a),
        lambda: study.split(a, Point.voxel((3, 3, 3))),
    ):
        with pytest.raises(SessionStateError, match=r"Object 1 .* is locked; unlock\(1\) first"):
            change()
    study.describe(a, name="renamed", colour=(1, 2, 3))
    assert (study.objects[0].name, study.objects[0].colour) == ("renamed", (1, 2, 3))
    assert study.objects[0].is_locked


def test_locked_voxels_keep_their_owner_or_none() -> None:
    study = make_study()
    a, b = with_masks(study, A, B)
    study.lock_voxels(Region((0, 0, 0), (9, 24, 6)))
    before = study.label_map().array[:9, :, :6].copy()
    (c,) = with_masks(study, np.ones(SHAPE, np.uint8))
    np.testing.assert_array_equal(study.label_map().array[:9, :, :6], before)
    assert study.label_map().array[0, 0, 7] == c
    with pytest.raises(SessionStateError, match=r"owns .* locked voxels"):
        study.delete(a)
    with pytest.raises(SessionStateError, match=r"owns .* locked voxels"):
        study.merge(c, b)
    study.delete(c)
    study.lock_voxels(study.volume.new_mask(block((20, 24), (20, 24), (20, 24))))
    assert study.state.locked_voxels.holds((23, 23, 23))
    study.unlock_voxels()
    study.delete(a)
    np.testing.assert_array_equal(shown(study, b), B)


def test_merging_makes_one_object_on_which_prompts_build() -> None:
    study = make_study()
    a, b, c = with_masks(study, A, B, C)
    study.merge(b, a, b)
    assert [item.id for item in study.objects] == [b, c]
    np.testing.assert_array_equal(shown(study, b), (A | B) & ~C & 1)
    assert len(study.log(b)) == 1
    assert study.replay() == ()
    study.undo()
    assert [item.id for item in study.objects] == [a, b, c]
    with pytest.raises(SessionStateError, match="needs another object"):
        study.merge(a, a)


def test_a_click_splits_a_part_off() -> None:
    study = make_study()
    far = block((18, 22), (18, 22), (18, 22))
    (a,) = with_masks(study, A | far)
    b = study.split(a, Point.world((19, 20, 19)), name="far")
    np.testing.assert_array_equal(shown(study, a), A)
    np.testing.assert_array_equal(shown(study, b), far)
    assert [item.name for item in study.objects] == ["Object 1", "far"]
    assert study.replay() == ()
    with pytest.raises(PromptError, match="one piece"):
        study.split(a, Point.voxel((3, 3, 3)))
    with pytest.raises(PromptError, match="not in the object"):
        study.split(a, Point.voxel((20, 20, 20)))
    study.undo()
    np.testing.assert_array_equal(shown(study, a), A | far)
    study.lock_voxels(Region((19, 19, 19), (20, 20, 20)))
    with pytest.raises(SessionStateError, match="has locked voxels"):
        study.split(a, Point.voxel((19, 20, 19)))


def test_steps_can_be_changed_and_taken_back() -> None:
    study = make_study()
    speck = block((20, 21), (20, 21), (20, 21))
    (a,) = with_masks(study, A | speck)
    np.testing.assert_array_equal(study.set_steps(a, RemoveSmall(0.01)).mask.array, A)
    answer = study.add(a, Point.voxel((4, 4, 4)))  # further answers are cleaned too
    assert answer.mask.array[20, 20, 20] == 0
    assert study.objects[0].answer.num_voxels >= study.objects[0].cleaned.num_voxels
    study.undo()
    study.set_steps(a)
    np.testing.assert_array_equal(shown(study, a), A | speck)
    with pytest.raises(PromptError, match="outside"):
        study.set_steps(a, Smooth(1.0), KeepComponent(Point.voxel((99, 0, 0))))
    np.testing.assert_array_equal(shown(study, a), A | speck)


def test_undo_and_redo_are_exact_for_every_kind_of_change() -> None:
    study = make_study()
    a, b = with_masks(study, A | block((20, 22), (20, 22), (20, 22)), B)
    changes = [
        lambda: study.add(a, Point.voxel((12, 12, 12))),
        lambda: study.set_steps(a, KeepComponent()),
        lambda: study.set_overlap("first_wins"),
        lambda: study.lock(b),
        lambda: study.lock_voxels(Region((0, 0, 0), (5, 5, 5))),
        lambda: study.describe(b, name="b"),
        lambda: study.unlock(b),
        study.unlock_voxels,
        lambda: study.merge(a, b),
    ]
    states = [study.state]
    for change in changes:
        change()
        states.append(study.state)
    for state in reversed(states[:-1]):
        study.undo()
        assert study.state is state
    for state in states[1:]:
        assert study.can_redo
        study.redo()
        assert study.state is state
    with pytest.raises(SessionStateError, match="nothing to redo"):
        study.redo()


def test_undo_ends_at_the_start_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastsam3d.session.undo.MAX_UNDO", 3)
    study = make_study()
    for _ in range(5):
        study.add_object()
    for _ in range(3):
        study.undo()
    assert not study.can_undo
    assert len(study.objects) == 2
    with pytest.raises(SessionStateError, match="nothing to undo"):
        study.undo()


def test_undo_of_large_masks_is_bounded_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study()
    (a,) = with_masks(study, A)
    monkeypatch.setattr("fastsam3d.session.undo.MAX_UNDO_BYTES", 1000)  # A alone has 512
    for n in range(3):
        study.describe(a, name=f"name {n}")  # shares all masks with the state before
    study.undo()
    study.undo()
    study.add(a, MaskPrompt(B, study.volume.geometry))
    study.add(a, MaskPrompt(C, study.volume.geometry))
    study.undo()
    assert shown(study, a)[12, 3, 3] == 1
    assert not study.can_undo


def test_a_call_that_fails_changes_nothing() -> None:
    study = make_study()
    (a,) = with_masks(study, A)
    state = study.state
    for change in (
        lambda: study.add(a, Point.voxel((3, 3, 3)), Point.voxel((99, 0, 0))),
        lambda: study.add_object("no ~ tildes"),
        lambda: study.add_object(colour=(0, 0, 256)),
        lambda: study.add(9, Point.voxel((3, 3, 3))),
        lambda: study.move(a, 1),
        lambda: study.set_overlap("mine"),
        lambda: study.lock_voxels(Mask(A[:2, :2, :2], Geometry((2, 2, 2), np.eye(4)))),
    ):
        with pytest.raises((ConfigError, PromptError, SessionStateError)):
            change()
        assert study.state is state


def test_changes_say_where_anything_is_shown_differently() -> None:
    study = make_study()
    a, b = with_masks(study, A, block((20, 22), (20, 22), (20, 22)))
    before = study.label_map().array
    answer = study.add(b, MaskPrompt(B, study.volume.geometry))
    outside = study.label_map().array != before
    outside[answer.changed.slices] = False
    assert not outside.any()
    assert np.any(shown(study, a) != A)


def test_a_hidden_answer_says_why() -> None:
    study = make_study()
    (a,) = with_masks(study, A)
    study.lock(a)
    b = study.add_object()
    answer = study.add(b, MaskPrompt(block((3, 5), (3, 5), (3, 5)), study.volume.geometry))
    assert answer.region.is_empty
    assert "locked or winning" in answer.warnings[-1]


def test_locked_neighbours_become_negative_points_of_the_log() -> None:
    study = make_study(locked_negatives=2)
    a, b, c = with_masks(study, A, block((10, 14), (20, 24), (10, 14)), C)
    study.lock(a)
    study.lock(b)
    new = study.add_object()
    study.add(new, Point.voxel((12, 12, 12)))
    prompts = [entry.prompt for entry in study.log(new).entries]
    assert [p.positive for p in prompts] == [False, False, True]
    far, near = (tuple(map(int, p.position)) for p in prompts[:2])
    assert study.mask(a).array[far] or study.mask(b).array[far]
    assert study.mask(a).array[near] or study.mask(b).array[near]
    distances = [np.linalg.norm(np.subtract(at, 12)) for at in (far, near)]
    assert distances[0] > distances[1]
    assert study.replay() == ()
    study.add(new, Point.voxel((13, 12, 12)))
    assert len(study.log(new)) == 4
    assert c not in {item.id for item in study.objects if item.is_locked}


@pytest.mark.parametrize("owned", [False, True])
def test_locked_voxels_become_negative_points_too_but_not_of_their_owner(*, owned: bool) -> None:
    study = make_study(locked_negatives=2)
    mine = study.add_object()
    if owned:
        other = study.add_object(prompts=[mask_of(A)])
    study.lock_voxels(Region((2, 2, 2), (10, 10, 10)))
    study.add(mine, Point.voxel((12, 12, 12)))
    negative, positive = (entry.prompt for entry in study.log(mine).entries)
    assert not negative.positive
    assert positive.positive
    assert A[tuple(map(int, negative.position))]
    if owned:
        study.undo_prompt(mine)
        study.remove_prompt(other, 1)
        study.add(other, Point.voxel((3, 3, 3)))
        assert len(study.log(other)) == 1


def test_colours_are_stable_and_far_apart() -> None:
    colours = [colour_of(n) for n in range(1, 13)]
    assert colours == [colour_of(n) for n in range(1, 13)]
    apart = np.linalg.norm(np.subtract.outer(colours, colours).diagonal(0, 1, 3), axis=-1)
    assert apart[~np.eye(12, dtype=bool)].min() > 25
    study = make_study()
    study.add_object()
    study.delete(1)
    study.add_object()
    assert study.objects[0].id == 2
    assert study.objects[0].colour == colour_of(2)


def test_the_label_map_holds_ids_and_is_exported_with_names(tmp_path) -> None:
    study = make_study()
    a, b = with_masks(study, A, B)
    study.describe(b, name="Leber", terminology=LIVER)
    labels = study.label_map()
    assert labels.array.dtype == np.uint8
    np.testing.assert_array_equal(labels.array, np.where(B, b, np.where(A, a, 0)))
    assert labels.geometry == study.volume.geometry
    study.export(tmp_path / "all.seg.nrrd")
    np.testing.assert_array_equal(read_mask(tmp_path / "all.seg.nrrd").array, labels.array)
    assert b"Segment1_Name:=Leber" in (tmp_path / "all.seg.nrrd").read_bytes()
    study.set_overlap("allow")
    study.export(tmp_path / "layers.seg.nrrd")
    header = (tmp_path / "layers.seg.nrrd").read_bytes()
    assert b"Segment0_Layer:=0" in header
    assert b"Segment1_Layer:=1" in header


def test_many_ids_need_sixteen_bits() -> None:
    study = make_study()
    for _ in range(256):
        study._states.current = study.state.added()
    study.add(256, MaskPrompt(A, study.volume.geometry))
    assert study.label_map().array.dtype == np.uint16
    assert study.label_map().array.max() == 256


def test_statistics_are_those_of_what_is_shown() -> None:
    study = make_study()
    a, _ = with_masks(study, A, B)
    found = study.statistics(a)
    assert found.num_voxels == np.count_nonzero(A & ~B & 1)
    assert found.volume_ml == pytest.approx(found.num_voxels / 1000)
    assert found.intensity.maximum == study.volume.array[(A & ~B & 1) > 0].max()


def test_a_study_does_not_depend_on_how_the_volume_is_stored() -> None:
    study = make_study()
    flipped = Volume(np.asfortranarray(study.volume.array), study.volume.geometry)
    other = Study(make_session(), flipped)
    for one in (study, other):
        one.add(one.add_object(), Point.voxel((12, 12, 12)))
    np.testing.assert_array_equal(shown(study, 1), shown(other, 1))


def test_an_object_can_be_added_with_its_prompts_as_one_change() -> None:
    study = make_study()
    ball = study.add_object("ball", prompts=[Point.voxel((12, 12, 12)), mask_of(A)])
    assert [entry.id for entry in study.log(ball).entries] == [1, 2]
    plain = make_study()
    plain.add(plain.add_object("ball"), Point.voxel((12, 12, 12)), mask_of(A))
    np.testing.assert_array_equal(shown(study, ball), shown(plain, 1))
    study.undo()
    assert study.objects == ()


def test_a_prompt_that_does_not_fit_adds_no_object() -> None:
    study = make_study()
    with pytest.raises(PromptError, match="outside"):
        study.add_object(prompts=[Point.voxel((99, 0, 0))])
    assert study.objects == ()


def test_an_object_taken_over_keeps_its_id_and_what_was_said_of_it() -> None:
    first, second = make_study(), make_study()
    _, liver = first.add_object(), first.add_object("liver", colour=(1, 2, 3), prompts=[mask_of(A)])
    answer = second.take_over(first.state.find(liver), mask_of(B))
    (item,) = second.objects
    assert (item.id, item.name, item.colour) == (liver, "liver", (1, 2, 3))
    assert answer.changed == answer.region == Region((6, 2, 2), (14, 10, 10))
    assert second.add_object() == liver + 1
    second.take_over(first.state.find(liver), mask_of(A))
    np.testing.assert_array_equal(shown(second, liver), A)
    second.lock(liver)
    with pytest.raises(SessionStateError, match="locked"):
        second.take_over(first.state.find(liver), mask_of(B))
    second.unlock(liver)
    second.undo()
    second.undo()
    second.undo()
    np.testing.assert_array_equal(shown(second, liver), B)
