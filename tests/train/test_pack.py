from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from fastsam3d.data import licences
from fastsam3d.errors import DatasetError
from fastsam3d.train.pack import load_pack
from fastsam3d.train.pack_writer import write_pack

HEADER = "case,split,kind,modality,body_part,label_names,license\n"
SPACING = (0.6, 0.6, 2.0)


def _save(path: Path, array: np.ndarray) -> None:
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetSpacing(SPACING)
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))  # RAS axes in ITK's LPS world
    path.parent.mkdir(parents=True)
    sitk.WriteImage(image, str(path))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    labels = np.zeros((64, 64, 30), dtype=np.uint8)
    labels[20:40, 20:40, 8:20] = 6
    body = np.zeros(labels.shape, dtype=bool)
    body[10:54, 10:54, 4:26] = True
    image = np.where(body, 40, -1000) + 80 * (labels == 6) + rng.integers(-9, 9, labels.shape)
    _save(root / "train/clinic__a/image.nii.gz", image.astype(np.int16))
    sitk.WriteImage(
        _like(root / "train/clinic__a/image.nii.gz", labels), root / "train/clinic__a/label.nii.gz"
    )
    _save(root / "train/atlas__b/label.nii.gz", labels)
    _save(root / "train/medsam2__x/image.nii.gz", image.astype(np.int16))
    _save(root / "dev/clinic__d/image.nii.gz", image.astype(np.int16))
    rows = [
        "clinic__a,train,image+label,CT,abdomen,6=liver,CC0",
        "atlas__b,train,label,CT-derived,abdomen,6=liver,CC0",
        "medsam2__x,train,image,CT,chest,,unstated",
        "clinic__d,dev,image,CT,abdomen,,CC0",
    ]
    (root / "manifest.csv").write_text(HEADER + "\n".join(rows) + "\n", encoding="utf-8")
    return root


def _like(reference: Path, array: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.CopyInformation(sitk.ReadImage(str(reference)))
    return image


@pytest.fixture(scope="module")
def pack_path(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pack")
    summary = write_pack(data_dir, out)
    assert summary["cases"] == 2
    return out / "train_pack.npz"


def test_only_licensed_training_cases_are_packed(pack_path: Path) -> None:
    assert [case.name for case in load_pack(pack_path)] == ["clinic__a", "atlas__b"]


def test_a_case_excluded_later_is_left_out_of_packs_written_before(
    pack_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(licences.EXCLUDED_CASES, "clinic__a", "found non-commercial")
    (case,) = load_pack(pack_path)
    assert case.name == "atlas__b"
    assert case.labels is not None
    assert case.labels.names == ("liver",)


def test_label_maps_of_ones_own_take_the_place_of_those_of_the_case(
    data_dir: Path, tmp_path: Path
) -> None:
    rows = (data_dir / "manifest.csv").read_text("utf-8").splitlines()
    bare = tmp_path / "data"
    bare.mkdir()
    (bare / "manifest.csv").write_text(f"{rows[0]}\n{rows[1]}\n", encoding="utf-8")
    (bare / "train").symlink_to(data_dir / "train")
    own = tmp_path / "own"
    own.mkdir()
    image = data_dir / "train/clinic__a/image.nii.gz"
    labels = np.zeros((64, 64, 30), dtype=np.uint8)
    labels[20:40, 20:40, 8:20] = 1
    labels[12:18, 20:40, 8:20] = 2
    sitk.WriteImage(_like(image, labels), own / "clinic__a.nii.gz")
    (own / "clicks.json").write_text('{"clinic__a": {"spleen": [], "tongue": []}}', "utf-8")

    def names(folder: Path) -> set[str]:
        write_pack(folder, tmp_path / "pack", annotations=own)
        (case,) = load_pack(tmp_path / "pack" / "train_pack.npz")
        assert case.labels is not None
        return set(case.labels.names)

    assert names(bare) == {"spleen", "tongue"}  # not the liver that the case came with
    without = tmp_path / "without"
    (without / "train/clinic__a").mkdir(parents=True)
    (without / "train/clinic__a/image.nii.gz").symlink_to(image)
    (without / "manifest.csv").write_text(f"{rows[0]}\n{rows[1]}\n", encoding="utf-8")
    assert names(without) == {"spleen", "tongue"}
    sitk.WriteImage(sitk.GetImageFromArray(labels[:9]), own / "clinic__a.nii.gz")
    with pytest.raises(DatasetError, match=r"clinic__a\.nii\.gz has shape .*label the image anew"):
        names(without)


def test_images_are_cropped_averaged_and_decode_to_hounsfield_units(pack_path: Path) -> None:
    case = load_pack(pack_path)[0]
    assert case.is_ct
    assert case.image is not None
    assert case.levels is not None
    assert case.labels is not None
    assert min(case.spacing_mm[:2]) >= 1.1
    assert case.spacing_mm[2] == pytest.approx(2.0)
    assert case.image.shape[0] < 40
    assert case.image.shape == case.labels.id_map.shape
    intensities = case.levels[case.image]
    assert np.median(intensities[case.labels.id_map > 0]) == pytest.approx(120, abs=5)


def test_objects_carry_names_and_seeds_inside(pack_path: Path) -> None:
    case = load_pack(pack_path)[1]
    assert case.image is None
    assert case.supervoxels == ()
    objects = case.labels
    assert objects is not None
    assert objects.values == (6,)
    assert objects.names == ("liver",)
    for seeds in (objects.table.seeds[0], objects.deep_seeds[0]):
        assert (objects.id_map[tuple(seeds.T)] == 1).all()
    np.testing.assert_allclose(objects.table.extent_mm[0], [12, 12, 24], atol=1.6)


def test_supervoxels_cover_the_organ_and_know_their_factor(pack_path: Path) -> None:
    case = load_pack(pack_path)[0]
    assert case.image is not None
    assert len(case.supervoxels) >= 2
    for objects in case.supervoxels:
        expected = tuple(n // f for n, f in zip(case.image.shape, objects.factor, strict=True))
        assert objects.id_map.shape == expected
        assert len(objects.table) == len(objects.contrast) == len(objects.deep_seeds)
    assert any(len(objects.table) for objects in case.supervoxels)


def test_a_damaged_or_missing_pack_is_told(pack_path: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="missing"):
        load_pack(tmp_path / "train_pack.npz")
    for name in ("train_pack.npz", "train_pack.json"):
        (tmp_path / name).write_bytes((pack_path.parent / name).read_bytes())
    with (tmp_path / "train_pack.npz").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(DatasetError, match="sha256"):
        load_pack(tmp_path / "train_pack.npz")


def test_a_folder_without_manifest_is_told(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"manifest\.csv"):
        write_pack(tmp_path, tmp_path)
