"""Masks out: on exactly the input's geometry, whole or not at all."""

import gzip
import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the name of its documentation

from fastsam3d.errors import VolumeWriteError
from fastsam3d.io import check_target, read_mask, read_volume, streams, write_mask, write_volume
from fastsam3d.io.nifti_header import NIFTI1_MAX_DIM
from fastsam3d.volume import Geometry, Mask, Region, Volume
from tests.io.nifti_files import AFFINE, field, nifti

SUFFIXES = [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"]
OBLIQUE = np.array(
    [[0.36, 0.48, -0.8], [-0.8, 0.6, 0.0], [0.48, 0.64, 0.6]]
)  # Rational, hence orthonormal to the last bit or so.
LABELS = (np.arange(24).reshape(2, 3, 4) % 3).astype(np.uint8)


def directions() -> dict[str, np.ndarray]:
    found = {"oblique": OBLIQUE, "oblique left-handed": OBLIQUE * (1, -1, 1)}
    for axes in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            matrix = np.eye(3)[list(axes)] * signs
            geometry = Geometry((2, 3, 4), _affine(matrix))
            found[geometry.orientation] = matrix
    return found


def _affine(matrix: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = matrix * (0.4, 0.7, 5.0)
    affine[:3, 3] = -120.3, 45.6, 1e3 / 3
    return affine


DIRECTIONS = directions()


def test_all_48_orientations_and_oblique_are_tested() -> None:
    assert len(DIRECTIONS) == 50


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_written_masks_are_read_back_identically(tmp_path: Path, suffix: str) -> None:
    for name, matrix in DIRECTIONS.items():
        mask = Mask(LABELS, Geometry((2, 3, 4), _affine(matrix)))
        path = tmp_path / f"mask{suffix}"
        write_mask(mask, path)
        back = read_mask(path)
        np.testing.assert_array_equal(back.array, LABELS, err_msg=name)
        # NIfTI-1 holds float32; the others hold all digits.
        digits = (
            {"rtol": 1e-7, "atol": 1e-6} if ".nii" in suffix else {"rtol": 1e-14, "atol": 1e-13}
        )
        np.testing.assert_allclose(
            back.geometry.affine, mask.geometry.affine, **digits, err_msg=name
        )
        # What came from a file goes back bit by bit.
        write_mask(back, path)
        again = read_mask(path)
        if "nrrd" not in suffix and "nhdr" not in suffix:
            assert again.geometry == back.geometry, name
        np.testing.assert_allclose(
            again.geometry.affine, back.geometry.affine, rtol=1e-15, atol=1e-15
        )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_simpleitk_sees_the_same_grid(tmp_path: Path, suffix: str) -> None:
    mask = Mask(LABELS, Geometry((2, 3, 4), _affine(OBLIQUE)))
    write_mask(mask, tmp_path / f"mask{suffix}")
    image = sitk.ReadImage(str(tmp_path / f"mask{suffix}"))
    size, spacing, origin, direction = mask.geometry.to_itk()
    assert image.GetSize() == size
    assert image.GetPixelID() == sitk.sitkUInt8
    for found, expected in [
        (image.GetSpacing(), spacing),
        (image.GetOrigin(), origin),
        (image.GetDirection(), direction),
    ]:
        np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).T, LABELS)


@pytest.mark.parametrize("direction", ["RAS", "LPS", "ASL", "oblique", "oblique left-handed"])
def test_the_qform_says_the_same_as_the_sform(tmp_path: Path, direction: str) -> None:
    geometry = Geometry((2, 3, 4), _affine(DIRECTIONS[direction]))
    write_mask(Mask(LABELS, geometry), tmp_path / "mask.nii")
    data = bytearray((tmp_path / "mask.nii").read_bytes())
    assert field(data, "qform_code") == field(data, "sform_code") == (1,)
    data[254:256] = bytes(2)  # Without its sform, the file is placed by the quaternion.
    (tmp_path / "mask.nii").write_bytes(data)
    assert read_volume(tmp_path / "mask.nii").geometry.is_close(geometry, tolerance_voxels=1e-4)


def test_a_sheared_grid_is_written_without_qform(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[0, 1] = 0.25
    write_mask(Mask(LABELS, Geometry((2, 3, 4), affine)), tmp_path / "mask.nii")
    assert field((tmp_path / "mask.nii").read_bytes(), "qform_code") == (0,)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.nii").geometry.affine, affine)


HEADERS = {
    "codes": {"qform_code": 2, "sform_code": 4, "qoffset": (-10.0, 20.0, 30.0)},
    "qform": {"qform_code": 3, "sform_code": 0, "quatern": (0.1, 0.2, 0.3), "qoffset": (1, 2, 3)},
    "no form": {"sform_code": 0},
    "metres": {"xyzt_units": 1},
    "text": {"descrip": b"scanner 7"},
}  # fmt: skip
GEOMETRY_FIELDS = (
    "dim",
    "pixdim",
    "qform_code",
    "sform_code",
    "quatern",
    "qoffset",
    "srow",
    "xyzt_units",
)


@pytest.mark.parametrize("kind", HEADERS)
def test_nifti_headers_are_kept_bit_by_bit(tmp_path: Path, kind: str) -> None:
    array = np.linspace(-5, 5, 24, dtype="f4").reshape(2, 3, 4)
    source = nifti(array, scl_slope=0.1, **HEADERS[kind])
    (tmp_path / "image.nii").write_bytes(source)
    volume = read_volume(tmp_path / "image.nii")
    write_mask(volume.new_mask(LABELS), tmp_path / "mask.nii")
    written = (tmp_path / "mask.nii").read_bytes()
    for name in (*GEOMETRY_FIELDS, "descrip"):
        np.testing.assert_array_equal(field(written, name), field(source, name), err_msg=name)
    assert field(written, "scl_slope") == (1.0,)
    assert field(written, "datatype") == (2,)
    back = read_mask(tmp_path / "mask.nii")
    assert back.geometry == volume.geometry
    np.testing.assert_array_equal(back.array, LABELS)


def test_2d_images_stay_2d_and_big_endian_stays_big(tmp_path: Path) -> None:
    (tmp_path / "image.nii").write_bytes(nifti(np.zeros((5, 3), "i2"), order=">"))
    mask = read_volume(tmp_path / "image.nii").new_mask(np.full((5, 3, 1), 700))
    write_mask(mask, tmp_path / "mask.nii")
    image = sitk.ReadImage(str(tmp_path / "mask.nii"))
    assert image.GetSize() == (5, 3)
    assert image.GetPixelID() == sitk.sitkUInt16
    assert np.all(sitk.GetArrayFromImage(image) == 700)


def test_a_header_of_another_grid_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "image.nii").write_bytes(nifti(sform_code=3))
    volume = read_volume(tmp_path / "image.nii")
    cropped = volume.geometry.crop(Region((1, 1, 1), (2, 3, 4)))
    write_mask(Mask(np.ones((1, 2, 3), bool), cropped, volume.source), tmp_path / "mask.nii")
    assert read_mask(tmp_path / "mask.nii").geometry == cropped
    write_mask(volume.new_mask(LABELS), tmp_path / "mask.mha")
    np.testing.assert_allclose(read_mask(tmp_path / "mask.mha").geometry.affine, AFFINE, rtol=1e-14)


def test_more_than_255_labels_take_uint16(tmp_path: Path) -> None:
    labels = np.arange(24).reshape(2, 3, 4) * 100
    for suffix in SUFFIXES:
        write_mask(Mask(labels, Geometry((2, 3, 4), np.eye(4))), tmp_path / f"mask{suffix}")
        back = read_mask(tmp_path / f"mask{suffix}")
        assert back.array.dtype == np.uint16
        np.testing.assert_array_equal(back.array, labels)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4", "f8"])
def test_volumes_keep_their_dtype(tmp_path: Path, dtype: str, suffix: str) -> None:
    array = (np.arange(24).reshape(2, 3, 4) * 1.5).astype(dtype)
    write_volume(Volume(array, Geometry((2, 3, 4), np.eye(4))), tmp_path / f"image{suffix}")
    back = read_volume(tmp_path / f"image{suffix}")
    assert back.array.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(back.array, array)


def test_axes_too_long_for_nifti_1_take_nifti_2(tmp_path: Path) -> None:
    shape = (1, NIFTI1_MAX_DIM + 1, 1)
    mask = Mask(np.ones(shape, np.uint8), Geometry(shape, _affine(OBLIQUE)))
    write_mask(mask, tmp_path / "mask.nii")
    assert (tmp_path / "mask.nii").read_bytes()[:8] == (540).to_bytes(4, "little") + b"n+2\0"
    back = read_mask(tmp_path / "mask.nii")
    assert back.geometry == mask.geometry
    write_mask(back, tmp_path / "again.nii")
    assert (tmp_path / "again.nii").read_bytes() == (tmp_path / "mask.nii").read_bytes()


@pytest.mark.parametrize("has_isal", [True, False])
def test_equal_masks_give_equal_gzip_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_isal: bool
) -> None:
    if not has_isal:
        monkeypatch.setattr(streams, "_gzip_file", gzip.GzipFile)
    mask = Mask(LABELS, Geometry((2, 3, 4), np.eye(4)))
    for name in ("a.nii.gz", "b.nii.gz"):
        write_mask(mask, tmp_path / name)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    np.testing.assert_array_equal(read_mask(tmp_path / "a.nii.gz").array, LABELS)


MASK = Mask(LABELS, Geometry((2, 3, 4), np.eye(4)))


@pytest.mark.parametrize(
    "name", ["mask.png", "mask", "mask.gz", ".nii.gz", "mask.nii.zip", "mask.NII"]
)
def test_unknown_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(VolumeWriteError, match=f"Cannot write '{name}': the name must end with"):
        write_mask(MASK, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_missing_folders_and_folders_as_targets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VolumeWriteError, match="folder does not exist; create it first"):
        write_mask(MASK, tmp_path / "none" / "mask.nii")
    (tmp_path / "mask.nii").mkdir()
    with pytest.raises(VolumeWriteError, match="a folder has that name"):
        check_target(tmp_path / "mask.nii")
    assert check_target(tmp_path / "other.mha") == tmp_path / "other.mha"


def test_types_without_a_file_format_are_refused(tmp_path: Path) -> None:
    volume = Volume(np.zeros((2, 3, 4), np.float16), MASK.geometry)
    with pytest.raises(VolumeWriteError, match="no file format holds float16; convert to float32"):
        write_volume(volume, tmp_path / "image.nii")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"mask{suffix}"
    write_mask(MASK, path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(VolumeWriteError, match="No space left on device; check the folder"):
        write_mask(Mask(LABELS * 2, MASK.geometry), path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_simpleitk_failures_are_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        message = "Exception thrown\nITK ERROR: NrrdImageIO(0x1): disk on fire"
        raise RuntimeError(message)

    monkeypatch.setattr(sitk, "WriteImage", broken)
    with pytest.raises(VolumeWriteError, match=r"SimpleITK could not write the file .disk on fire"):
        write_mask(MASK, tmp_path / "mask.nrrd")
    assert not list(tmp_path.iterdir())


def test_pairs_hold_the_name_of_their_own_data_file(tmp_path: Path) -> None:
    for suffix in (".nhdr", ".mhd"):
        write_mask(MASK, tmp_path / f"liver{suffix}")
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"liver.nhdr", "liver.raw.gz", "liver.mhd", "liver.zraw"}


def test_voxels_can_stay_as_they_are_for_readers_that_cannot_inflate(tmp_path: Path) -> None:
    volume = Volume(np.zeros((4, 5, 6), np.uint8), Geometry((4, 5, 6), np.eye(4)))
    write_volume(volume, tmp_path / "plain.nrrd", is_compressed=False)
    assert (tmp_path / "plain.nrrd").read_bytes().endswith(bytes(4 * 5 * 6))
    assert b"encoding: raw" in (tmp_path / "plain.nrrd").read_bytes()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_any_memory_order_of_many_slices_gives_the_same_file(tmp_path: Path, suffix: str) -> None:
    labels = (np.arange(3 * 4 * 150).reshape(3, 4, 150) % 7).astype(np.uint8)
    orders = {
        "k fastest": labels,
        "i fastest": np.asfortranarray(labels),
        "backwards": np.ascontiguousarray(labels[::-1, :, ::-1])[::-1, :, ::-1],
    }
    written = []
    for name, array in orders.items():
        path = tmp_path / f"mask{suffix}"
        write_mask(Mask(array, Geometry(labels.shape, AFFINE)), path)
        np.testing.assert_array_equal(read_mask(path).array, labels, err_msg=name)
        written.append(path.read_bytes())
    assert len(set(written)) == 1


def test_writing_needs_the_memory_of_a_few_slices(tmp_path: Path) -> None:
    shape = (64, 64, 1024)
    mask = Mask(np.zeros(shape, np.uint8), Geometry(shape, AFFINE))
    write_mask(mask, tmp_path / "first.nii.gz")
    tracemalloc.start()
    write_mask(mask, tmp_path / "mask.nii.gz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < mask.array.nbytes / 2
