"""Saved studies: equal after loading, refused when damaged or foreign, never half written."""

import json
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from fastsam3d.errors import StudyFileError, VolumeWriteError
from fastsam3d.io.segmentation import Code, Terminology
from fastsam3d.prompts import Lasso, MaskPrompt, Point, Scribble
from fastsam3d.session import KeepComponent, Smooth, Study
from fastsam3d.session.study_file import volume_hash
from fastsam3d.volume import Geometry, Region, Volume
from tests.session.phantoms import ball_volume
from tests.session.test_study import A, B, make_session, with_masks

VOLUME = ball_volume(shape=(24, 24, 24), centre_mm=(12, 12, 12), radius_mm=5)
LIVER = Terminology(
    Code("SCT", "123037004", "Anatomical Structure"),
    Code("SCT", "10200004", "Liver"),
    Code("SCT", "7771000", "Left"),
)


def full_study(**options: object) -> Study:
    """A study with something of everything."""
    study = Study(make_session(), VOLUME, **options)
    a, _ = with_masks(study, A, B)
    ball = study.add_object("Kugel µ", terminology=LIVER, colour=(1, 2, 3))
    study.add(ball, Point.voxel((12, 12, 12)))
    study.add(ball, Scribble.world([(-15, -12, 12)], "LPS", positive=False))
    study.add(ball, Lasso.voxel([(8, 8, 12), (16, 8, 12), (12, 16, 12)], axis=2))
    study.remove_prompt(ball, 2)
    study.undo_prompt(ball)
    study.set_steps(ball, Smooth(1.0), KeepComponent(Point.world((12, 12, 12))))
    study.lock(a)
    study.lock_voxels(Region((0, 0, 0), (9, 9, 5)))
    study.set_overlap("first_wins")
    return study


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "a.study"
    full_study().save(path)
    return path


def assert_same(one: Study, two: Study) -> None:
    assert len(one.objects) == len(two.objects)
    for a, b in zip(one.objects, two.objects, strict=True):
        for name in ("id", "name", "colour", "terminology", "log", "steps", "quality"):
            assert getattr(a, name) == getattr(b, name)
        assert a.is_locked == b.is_locked
        for name in ("answer", "cleaned", "pinned"):
            assert getattr(a, name).equals(getattr(b, name))
        assert one.state.shown[a.id].equals(two.state.shown[a.id])
    assert one.state.locked_voxels.equals(two.state.locked_voxels)
    assert (one.state.overlap, one.state.next_id) == (two.state.overlap, two.state.next_id)
    np.testing.assert_array_equal(one.label_map().array, two.label_map().array)


def test_a_loaded_study_is_the_same_and_the_model_is_not_asked(saved: Path) -> None:
    session = make_session()
    loaded = Study.load(saved, session, VOLUME)
    assert_same(loaded, full_study())
    assert session.predictor.model.decoded == []
    assert not loaded.can_undo


def test_a_loaded_study_replays_to_the_same_masks_and_goes_on(saved: Path) -> None:
    loaded, original = Study.load(saved, make_session(), VOLUME), full_study()
    assert loaded.replay() == ()
    for study in (loaded, original):
        study.redo_prompt(3)
        study.add(3, Point.voxel((8, 12, 12)))
        study.unlock(1)
    assert_same(loaded, original)


def test_equal_studies_give_equal_files(saved: Path, tmp_path: Path) -> None:
    Study.load(saved, make_session(), VOLUME).save(tmp_path / "b.study")
    assert (tmp_path / "b.study").read_bytes() == saved.read_bytes()


def test_an_empty_study_can_be_saved(tmp_path: Path) -> None:
    empty = Study(make_session(), VOLUME)
    empty.save(tmp_path / "a.study")
    assert_same(Study.load(tmp_path / "a.study", make_session(), VOLUME), empty)


def test_every_change_is_saved_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.study"
    study = Study(make_session(), VOLUME, autosave=path)
    ball = study.add_object()
    for change in (
        lambda: study.add(ball, Point.voxel((12, 12, 12))),
        lambda: study.lock(ball),
        study.undo,
        study.redo,
    ):
        change()
        assert_same(Study.load(path, make_session(), VOLUME), study)
    assert [file.name for file in tmp_path.iterdir()] == ["a.study"]


def test_a_crash_while_saving_leaves_the_file_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.study"
    study = Study(make_session(), VOLUME, autosave=path)
    ball = study.add_object()
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", fail)
    with pytest.raises(VolumeWriteError, match="No space left on device"):
        study.add(ball, Point.voxel((12, 12, 12)))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.study"]
    assert study.mask(ball).array.any()  # the answer itself is kept


def test_studies_are_written_into_folders_that_exist(tmp_path: Path) -> None:
    for path in (tmp_path / "no" / "a.study", tmp_path):
        with pytest.raises(VolumeWriteError, match="Cannot write"):
            full_study().save(path)


def test_the_hash_is_of_voxels_and_not_of_memory() -> None:
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    geometry = Geometry((3, 4, 5), np.eye(4))
    one = volume_hash(Volume(array, geometry))
    assert volume_hash(Volume(np.asfortranarray(array), geometry)) == one
    assert volume_hash(Volume(array[::-1][::-1], geometry)) == one
    changed = array.copy()
    changed[2, 3, 4] += 1
    assert volume_hash(Volume(changed, geometry)) != one
    assert volume_hash(Volume(array.astype(np.int32), geometry)) != one


@pytest.mark.parametrize(
    "other",
    [
        ball_volume(shape=(24, 24, 24), centre_mm=(12, 12, 11.9), radius_mm=5),
        ball_volume(shape=(24, 24, 23), centre_mm=(12, 12, 12), radius_mm=5),
        Volume(VOLUME.array, Geometry((24, 24, 24), np.diag([1.0, 1.0, 1.1, 1.0]))),
    ],
)
def test_another_volume_is_refused(saved: Path, other: Volume) -> None:
    with pytest.raises(StudyFileError, match=r"made on another volume.*open it with its own"):
        Study.load(saved, make_session(), other)


def test_a_geometry_that_went_through_a_float32_header_is_the_same(saved: Path) -> None:
    affine = (VOLUME.geometry.affine + 1e-7).astype(np.float32).astype(float)
    affine[3] = (0, 0, 0, 1)
    Study.load(saved, make_session(), Volume(VOLUME.array, Geometry((24, 24, 24), affine)))


def rewritten(saved: Path, path: Path, change: object) -> Path:
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        members = {name: old.read(name) for name in old.namelist()}
        change(members)
        for name, data in members.items():
            new.writestr(name, data)
    return path


def edited(**changes: object):
    def change(members: dict[str, bytes]) -> None:
        members["study.json"] = json.dumps(json.loads(members["study.json"]) | changes).encode()

    return change


def first_object(**changes: object):
    def change(members: dict[str, bytes]) -> None:
        plain = json.loads(members["study.json"])
        plain["objects"][0] |= changes
        members["study.json"] = json.dumps(plain).encode()

    return change


HUGE = {"start": [0, 0, 0], "stop": [24, 24, 24], "bits": "masks/0"}


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("study.json"),
        lambda m: m.pop("masks/0"),
        lambda m: m.update({"study.json": b"{"}),
        lambda m: m.update({"study.json": b"[" * 100_000}),
        lambda m: m.update({"study.json": b"\xff\xfe"}),
        lambda m: m.update({"masks/0": b"nonsense"}),
        lambda m: m.update({"masks/0": m["masks/1"]}),
        lambda m: m.update({"masks/0": zlib.compress(bytes(2**24))}),
        lambda m: m.update({"masks/0": bytes(2**24)}),
        edited(format="other"),
        edited(objects=7),
        edited(objects=[{}]),
        edited(overlap="mine"),
        edited(next_id=2),
        edited(next_id="9"),
        edited(next_id=10**9),
        edited(volume={}),
        first_object(name="a ~ b"),
        first_object(name=7),
        first_object(colour=[1, 2]),
        first_object(colour=[1, 2, 300]),
        first_object(quality="good"),
        first_object(quality=-1),
        first_object(terminology={"category": 1}),
        first_object(steps=[{"kind": "polish"}]),
        first_object(log={"version": 1}),
        first_object(answer=HUGE),
        first_object(answer=HUGE | {"stop": [24, 24, 25]}),
        first_object(answer=HUGE | {"start": [-1, 0, 0]}),
        first_object(answer=HUGE | {"stop": [24.5, 24, 24]}),
        first_object(answer=None),
    ],
)
def test_damaged_files_are_refused_in_one_sentence(
    saved: Path, tmp_path: Path, change: object
) -> None:
    path = rewritten(saved, tmp_path / "b.study", change)
    with pytest.raises(StudyFileError, match=r"'b.study' is not a study or is damaged") as caught:
        Study.load(path, make_session(), VOLUME)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("at", [10, 400, 1000, -200, -30])
def test_flipped_bytes_are_noticed_or_harmless(saved: Path, tmp_path: Path, at: int) -> None:
    data = bytearray(saved.read_bytes())
    data[at] ^= 0x5A
    (tmp_path / "b.study").write_bytes(data)
    try:
        loaded = Study.load(tmp_path / "b.study", make_session(), VOLUME)
    except StudyFileError:
        return
    assert_same(loaded, full_study())  # a date or a flag that carries nothing


@pytest.mark.parametrize("size", [0, 1, 100, 1000])
def test_truncated_files_are_refused(saved: Path, tmp_path: Path, size: int) -> None:
    (tmp_path / "b.study").write_bytes(saved.read_bytes()[:size])
    with pytest.raises(StudyFileError, match="damaged"):
        Study.load(tmp_path / "b.study", make_session(), VOLUME)


def test_missing_files_and_later_versions_say_what_to_do(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(StudyFileError, match="No such file"):
        Study.load(tmp_path / "none.study", make_session(), VOLUME)
    path = rewritten(saved, tmp_path / "b.study", edited(version=2, program="fastsam3d 9"))
    with pytest.raises(StudyFileError, match=r"version 2 .* reads version 1; .*fastsam3d 9"):
        Study.load(path, make_session(), VOLUME)


def test_a_small_file_cannot_ask_for_much_memory(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastsam3d.session.study_file.MAX_MASK_VOXELS", 2000)
    with pytest.raises(StudyFileError, match="does not fit"):
        Study.load(saved, make_session(), VOLUME)
    monkeypatch.undo()
    monkeypatch.setattr("fastsam3d.session.study_file.MAX_JSON_BYTES", 100)
    with pytest.raises(StudyFileError, match="at most 100 fit"):
        Study.load(saved, make_session(), VOLUME)
    monkeypatch.undo()
    monkeypatch.setattr("fastsam3d.session.study_file.MAX_MEMBERS", 1)
    with pytest.raises(StudyFileError, match="members"):
        Study.load(saved, make_session(), VOLUME)


def test_masks_of_mask_prompts_are_kept_as_bits(saved: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        text = archive.read("study.json").decode()
    assert "runs" not in text
    loaded = Study.load(saved, make_session(), VOLUME)
    assert loaded.log(1).prompts.mask == MaskPrompt(A, VOLUME.geometry)
