"""A user's folder becomes a pack and held-out cases, or a sentence about what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fastsam3d.errors import ConfigError, DatasetError, FastSAM3DError
from fastsam3d.eval.folders import CaseFile
from fastsam3d.eval.protocol import InteractionProtocol
from fastsam3d.io import write_mask
from fastsam3d.train.finetune_cases import CaseOptions, prepare_cases, split_cases
from fastsam3d.train.pack import load_pack, read_index
from fastsam3d.volume import Geometry, Mask
from tests.train.folders import SPACING, case_arrays, write_case, write_nnunet


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cases")
    for seed in range(4):
        write_case(root / f"patient{seed}", seed)
    return root


def files(*subjects: str) -> list[CaseFile]:
    return [
        CaseFile(
            name=f"case{number}", subject=subject, source="s", kind="volumes", image=Path("none")
        )
        for number, subject in enumerate(subjects)
    ]


def test_whole_subjects_are_held_out_by_seed_and_name_alone() -> None:
    cases = files(*"aabbccdd")
    train, held_out = split_cases(cases, share=0.25, seed=3)
    assert len(held_out) == 2
    assert {case.subject for case in train}.isdisjoint(case.subject for case in held_out)
    assert split_cases(cases, share=0.25, seed=3) == (train, held_out)
    chosen = {split_cases(cases, share=0.25, seed=seed)[1][0].name for seed in range(8)}
    assert len(chosen) > 1


def test_a_small_share_still_holds_out_one_subject_and_none_holds_out_none() -> None:
    assert len(split_cases(files(*"abc"), share=0.01, seed=0)[1]) == 1
    assert split_cases(files("a"), share=0, seed=0)[1] == ()


def test_pack_has_the_training_cases_in_ras_with_what_is_known(
    folder: Path, tmp_path: Path
) -> None:
    options = CaseOptions(held_out=0.25, licence="CC0", modality="MR T2")
    prepared = prepare_cases(folder, tmp_path, options)
    (held_out,) = prepared.held_out
    packed = load_pack(prepared.pack)
    assert [case.name for case in packed] == [case.name for case in prepared.train]
    assert held_out.name not in {case.name for case in packed}
    assert all((c.licence, c.modality, c.is_ct) == ("CC0", "MR T2", False) for c in packed)
    assert all(c.supervoxels == () for c in packed)
    first = packed[0]
    assert first.labels is not None
    assert first.labels.values == (2,)
    assert first.spacing_mm == SPACING
    _, labels = case_arrays(int(first.name[-1]))
    assert (first.labels.id_map > 0).sum() == (labels > 0).sum()


def test_a_pack_of_the_same_cases_is_kept_and_another_seed_writes_it_again(
    folder: Path, tmp_path: Path
) -> None:
    first = prepare_cases(folder, tmp_path, CaseOptions(seed=1))
    written = first.pack.stat().st_mtime_ns
    assert prepare_cases(folder, tmp_path, CaseOptions(seed=1)) == first
    assert first.pack.stat().st_mtime_ns == written
    prepare_cases(folder, tmp_path, CaseOptions(seed=2))
    assert first.pack.stat().st_mtime_ns > written


def test_of_an_nnunet_folder_the_test_cases_stay_unseen(tmp_path: Path) -> None:
    write_nnunet(tmp_path / "set", train=2, test=1)
    prepared = prepare_cases(tmp_path / "set", tmp_path / "out", CaseOptions(held_out=0.5))
    names = [case.name for case in (*prepared.train, *prepared.held_out)]
    assert sorted(names) == ["ball_000", "ball_001"]
    (entry,) = read_index(prepared.pack)["cases"]
    assert (entry["source"], entry["licence"]) == ("Balls", "CC-BY-4.0")
    assert entry["label"]["names"] == {"2": "ball"}


def test_where_labels_are_lists_each_value_is_trained_on_and_the_unions_are_measured(
    tmp_path: Path,
) -> None:
    write_nnunet(tmp_path / "set", train=2, test=0)
    path = tmp_path / "set/dataset.json"
    dataset = json.loads(path.read_text(encoding="utf-8"))
    dataset["labels"] = {"background": 0, "all of it": [1, 2], "core": [2]}
    path.write_text(json.dumps(dataset), encoding="utf-8")
    prepared = prepare_cases(tmp_path / "set", tmp_path / "out", CaseOptions(held_out=0.5))
    (case,) = load_pack(prepared.pack)
    assert case.labels is not None
    truth = prepared.held_out[0].read()
    assert set(case.labels.values) == set(np.unique(truth.labels).tolist()) - {0}
    measured = {truth.structure(t.label) for t in InteractionProtocol(num_clicks=1).targets(truth)}
    assert measured <= {"all of it", "core"}
    assert "all of it" in measured


def test_ct_is_told_by_its_air_and_licences_are_not_invented(tmp_path: Path) -> None:
    write_case(tmp_path / "set/a", 0, air=-1000.0)
    prepared = prepare_cases(tmp_path / "set", tmp_path / "out", CaseOptions(held_out=0))
    (case,) = load_pack(prepared.pack)
    assert (case.modality, case.is_ct, case.licence) == ("CT", True, "unspecified")


def empty(root: Path) -> None:
    root.mkdir()


def image_alone(root: Path) -> None:
    write_case(root / "a", 0)
    (root / "a/label.nii.gz").unlink()


def other_grid(root: Path) -> None:
    write_case(root / "a", 0)
    write_case(root / "b", 0)
    wrong = np.ones((5, 5, 5), np.uint8)
    write_mask(Mask(wrong, Geometry(wrong.shape, np.eye(4))), root / "b/label.nii.gz")


def no_structure(root: Path) -> None:
    for name in "ab":
        write_case(root / name, 0)
        volume, labels = case_arrays(0)
        write_mask(volume.new_mask(0 * labels), root / name / "label.nii.gz")


def damaged(root: Path) -> None:
    for name in "ab":
        write_case(root / name, 0)
        (root / name / "image.nii.gz").write_bytes(b"\x1f\x8b not an image")


def lonely(root: Path) -> None:
    write_case(root / "a", 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (empty, "No labelled case"),
        (image_alone, "No labelled case"),
        (other_grid, "differ in geometry|grid"),
        (no_structure, "None of the 1 held-out cases has a structure of 30 voxels"),
        (damaged, "Cannot read 'image.nii.gz'"),
        (lonely, "Holding out 1 of 1 subjects leaves none to train on"),
    ],
)
def test_bad_folders_are_told_in_a_sentence_and_leave_no_split(
    make: object, message: str, tmp_path: Path
) -> None:
    root = tmp_path / "set"
    make(root)  # type: ignore[operator]
    for seed in range(3):  # a bad case is found whether it is trained on or held out
        with pytest.raises(FastSAM3DError, match=message):
            prepare_cases(root, tmp_path / "out", CaseOptions(seed=seed, held_out=0.5))
    assert not (tmp_path / "out/split.json").exists()


def test_label_maps_without_a_structure_are_told(tmp_path: Path) -> None:
    no_structure(tmp_path / "set")
    with pytest.raises(DatasetError, match=r"No training case of .* has a label above 0"):
        prepare_cases(tmp_path / "set", tmp_path / "out", CaseOptions(held_out=0))


def test_packages_that_are_not_installed_are_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastsam3d.train.finetune_cases.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"needs edt and connected-components-3d; install"):
        prepare_cases(folder, tmp_path, CaseOptions())


def test_an_impossible_share_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"from 0 to below 1, got 1\.5"):
        CaseOptions(held_out=1.5)
