import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from fastsam3d.errors import DatasetError
from fastsam3d.eval.cases import write_case_pack
from fastsam3d.eval.folders import find_cases, fingerprint
from fastsam3d.io import write_mask, write_volume
from fastsam3d.volume import Mask, Region
from tests.eval.toy import make_case


def write_case(folder: Path, name: str, *, label: bool = True) -> None:
    """Write the toy case as our folders have it."""
    case = make_case()
    (folder / name).mkdir(parents=True)
    write_volume(case.volume, folder / name / "image.nii.gz")
    if label:
        write_mask(Mask(case.labels, case.volume.geometry), folder / name / "label.nii.gz")


def write_nnunet(root: Path, part: str, name: str, *, channel: str = "_0000") -> None:
    """Write the toy case as nnU-Net has it."""
    case = make_case()
    for folder in (f"images{part}", f"labels{part}"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    write_volume(case.volume, root / f"images{part}" / f"{name}{channel}.nii.gz")
    label = root / f"labels{part}" / f"{name}.nii.gz"
    write_mask(Mask(case.labels, case.volume.geometry), label)


def test_labelled_cases_of_a_folder_are_found_and_read(tmp_path: Path) -> None:
    write_case(tmp_path, "clinic__b")
    write_case(tmp_path, "clinic__a")
    write_case(tmp_path, "clinic__unlabelled", label=False)
    found = find_cases(tmp_path)
    assert [case.name for case in found] == ["clinic__a", "clinic__b"]
    case = found[0].read()
    assert (case.source, case.subject) == ("clinic", "clinic__a")
    np.testing.assert_array_equal(case.labels, make_case().labels)
    np.testing.assert_array_equal(case.volume.array, make_case().volume.array)
    assert case.structure(1) == "label 1"


@pytest.mark.parametrize("where", ["dev", "."])
def test_a_manifest_in_or_beside_the_folder_chooses_and_names(tmp_path: Path, where: str) -> None:
    for split, name in (("dev", "clinic__a"), ("dev", "scan7"), ("train", "clinic__t")):
        write_case(tmp_path / split, name)
    write_case(tmp_path / "dev", "not_in_the_manifest")
    (tmp_path / "manifest.csv").write_text(
        "case,split,kind,label_names,license,source,subject\n"
        "clinic__a,dev,image+label,1=liver; 4=spleen,CC0,somewhere,p1\n"
        "scan7,dev,image+label,,CC0,elsewhere,\n"
        "clinic__t,train,image+label,1=liver,CC0,somewhere,\n"
        "clinic__i,dev,image,,CC0,somewhere,\n",
        encoding="utf-8",
    )
    first, second = find_cases(tmp_path / where, split="dev")
    assert (first.name, first.source, first.subject) == ("clinic__a", "clinic", "p1")
    assert first.label_names == {1: "liver", 4: "spleen"}
    assert first.read().structure(4) == "spleen"
    assert first.licence == "CC0"
    assert (second.name, second.source, second.subject) == ("scan7", "elsewhere", "scan7")
    with pytest.raises(DatasetError, match="'test'"):
        find_cases(tmp_path / where, split="test")


def test_a_manifest_beside_the_folder_that_means_other_cases_is_not_used(tmp_path: Path) -> None:
    write_case(tmp_path / "mine", "a")
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("case,split\nother,dev\n", encoding="utf-8")
    assert [case.name for case in find_cases(tmp_path / "mine")] == ["a"]
    manifest.rename(tmp_path / "mine" / "manifest.csv")
    with pytest.raises(DatasetError, match="names no case"):
        find_cases(tmp_path / "mine")


def test_a_pattern_says_which_cases_share_a_subject(tmp_path: Path) -> None:
    for name in ("mr__p001f01", "mr__p001f02", "mr__p002f01", "mr__x"):
        write_case(tmp_path, name)
    found = find_cases(tmp_path, subject_pattern=r"p\d{3}")
    assert [case.subject for case in found] == ["mr/p001", "mr/p001", "mr/p002", "mr__x"]
    with pytest.raises(DatasetError, match="no regular expression"):
        find_cases(tmp_path, subject_pattern="(")


@pytest.mark.parametrize(
    ("labels", "ignored"),
    [
        ({"background": 0, "liver": 1, "spleen": 4, "both": [1, 4], "ignore": 7}, (7,)),
        ({"0": "background", "1": "liver", "4": "spleen"}, ()),
    ],
)
def test_an_nnunet_folder_of_either_version_is_read(
    tmp_path: Path, labels: dict[str, object], ignored: tuple[int, ...]
) -> None:
    write_nnunet(tmp_path, "Ts", "case_2")
    write_nnunet(tmp_path, "Ts", "case_1", channel="")
    write_nnunet(tmp_path, "Tr", "case_3")
    content = {"name": "Abdomen", "labels": labels, "licence": "CC-BY"}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    found = find_cases(tmp_path)
    assert [case.name for case in found] == ["case_1", "case_2", "case_3"]
    assert {case.source for case in found} == {"Abdomen"}
    case = found[1].read()
    assert case.label_names == {1: "liver", 4: "spleen"}
    assert case.ignored == ignored
    np.testing.assert_array_equal(case.labels, make_case().labels)
    assert [case.name for case in find_cases(tmp_path, split="Tr")] == ["case_3"]
    with pytest.raises(DatasetError, match="Ts and Tr"):
        find_cases(tmp_path, split="dev")


@pytest.mark.parametrize("content", ["{", "[]", '{"labels": 3}'])
def test_a_dataset_json_that_is_none_is_told(tmp_path: Path, content: str) -> None:
    write_nnunet(tmp_path, "Ts", "a")
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DatasetError, match=r"dataset\.json"):
        find_cases(tmp_path)


def write_challenge(path: Path, **members: object) -> None:
    """Write a challenge file of the toy case as the challenge does, with pickled prompts."""
    case = make_case()
    content = {
        "imgs": case.volume.array.transpose().astype(np.uint8),
        "gts": case.labels.transpose(),
        "spacing": case.volume.geometry.spacing,
        **members,
    }
    np.savez_compressed(path, **{k: v for k, v in content.items() if v is not None})


def test_challenge_files_are_cases_with_the_boxes_that_they_hold(tmp_path: Path) -> None:
    names = ("z_min", "z_max", "z_mid", "z_mid_y_min", "z_mid_y_max", "z_mid_x_min", "z_mid_x_max")
    boxes = [dict(zip(names, (2, 7, 4, 2, 8, 1, 9), strict=True))] * 3
    write_challenge(tmp_path / "CT_Liver_01.npz", boxes=boxes)
    write_challenge(tmp_path / "CT_Liver_02.npz")
    first, second = find_cases(tmp_path)
    assert (first.name, first.source) == ("CT_Liver_01", "CT_Liver")
    case = first.read()
    np.testing.assert_array_equal(case.labels, make_case().labels)
    assert case.volume.geometry.spacing == (1.0, 1.0, 1.5)
    box = Region((1, 2, 2), (10, 9, 8))
    assert case.boxes == {1: box, 4: box, 7: box}
    # Without a box in the file the challenge skips the round of the box.
    assert second.read().boxes == {}


def test_the_truth_of_challenge_files_may_lie_in_another_folder(tmp_path: Path) -> None:
    images, truth = tmp_path / "images", tmp_path / "truth"
    images.mkdir()
    truth.mkdir()
    write_challenge(images / "a.npz", gts=None)
    with pytest.raises(DatasetError, match="has no truth"):
        find_cases(images)[0].read()
    with pytest.raises(DatasetError, match="missing"):
        find_cases(images, truth=truth)
    write_challenge(truth / "a.npz", imgs=None, spacing=None)
    case = find_cases(images, truth=truth)[0].read()
    np.testing.assert_array_equal(case.labels, make_case().labels)


def test_a_case_pack_is_found_by_its_path(tmp_path: Path) -> None:
    write_case_pack([make_case("clinic__a"), make_case("other__b", seed=1)], tmp_path / "dev.npz")
    found = find_cases(tmp_path / "dev.npz", subject_pattern="[ab]$")
    assert [case.subject for case in found] == ["clinic/a", "other/b"]
    case = found[1].read()
    np.testing.assert_array_equal(case.volume.array, make_case(seed=1).volume.array)
    assert case.subject == "other/b"


def test_nothing_and_doubles_are_told(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="does not exist"):
        find_cases(tmp_path / "absent")
    with pytest.raises(DatasetError, match="No labelled case"):
        find_cases(tmp_path)
    write_case(tmp_path / "x", "a")
    write_case(tmp_path / "y", "a")
    with pytest.raises(DatasetError, match="twice"):
        find_cases(tmp_path)
    assert len(find_cases(tmp_path, split="x")) == 1


def test_a_case_file_travels_and_its_fingerprint_follows_the_files(tmp_path: Path) -> None:
    write_case(tmp_path, "a")
    found = find_cases(tmp_path)
    assert pickle.loads(pickle.dumps(found)) == found  # noqa: S301 - our own
    before = fingerprint(found)
    assert fingerprint(find_cases(tmp_path)) == before
    with found[0].image.open("ab") as stream:
        stream.write(b"more")
    assert fingerprint(found) != before
