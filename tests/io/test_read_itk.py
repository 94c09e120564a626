"""NRRD and MetaImage in: LPS and k, j, i end here; lies are told before allocation."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the name of its documentation

from fastsam3d.errors import GeometryError, VolumeReadError
from fastsam3d.io import read_volume

ARRAY = np.arange(24, dtype="i2").reshape(2, 3, 4)
DIRECTION = (0.0, 0.6, 0.8, 1.0, 0.0, 0.0, 0.0, 0.8, -0.6)


def image(array: np.ndarray = ARRAY) -> sitk.Image:
    made = sitk.GetImageFromArray(array.T.copy())
    made.SetSpacing((0.4, 0.7, 5.0))
    made.SetOrigin((1.0, 2.0, 3.0))
    made.SetDirection(DIRECTION)
    return made


@pytest.mark.parametrize("is_compressed", [False, True])
@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
def test_voxels_and_places_are_those_of_itk(
    tmp_path: Path, dtype: str, suffix: str, *, is_compressed: bool
) -> None:
    path = tmp_path / f"image{suffix}"
    expected = image(ARRAY.astype(dtype))
    sitk.WriteImage(expected, str(path), is_compressed)
    volume = read_volume(path)
    assert volume.array.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(volume.array, ARRAY)
    for index in ((0, 0, 0), (1, 0, 0), (0, 2, 0), (1, 2, 3)):
        lps = np.array(expected.TransformIndexToPhysicalPoint(index))
        np.testing.assert_allclose(
            volume.geometry.voxel_to_world(index), lps * (-1, -1, 1), atol=1e-12
        )


def test_content_decides_and_not_the_name(tmp_path: Path) -> None:
    for suffix in (".nrrd", ".mha"):
        made = tmp_path / f"image{suffix}"
        sitk.WriteImage(image(), str(made))
        np.testing.assert_array_equal(read_volume(made.rename(tmp_path / "x.nii.gz")).array, ARRAY)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_2d_images_and_trailing_single_axes_are_volumes(tmp_path: Path, suffix: str) -> None:
    path = str(tmp_path / f"image{suffix}")
    flat = sitk.GetImageFromArray(ARRAY[:, :, 0].T.copy())
    flat.SetSpacing((2, 3))
    sitk.WriteImage(flat, path)
    volume = read_volume(path)
    assert volume.shape == (2, 3, 1)
    assert volume.geometry.spacing == (2, 3, 1)
    sitk.WriteImage(sitk.JoinSeries([image()]), path)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, ARRAY)
    np.testing.assert_allclose(volume.geometry.spacing, (0.4, 0.7, 5.0))


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (sitk.JoinSeries([image(), image()]), r"must be 3-D, got shape \(2, 3, 4, 2\); choose"),
        (sitk.Compose([image()] * 3), "one real number each, got 3 x"),
        (image(np.where(ARRAY == 3, np.nan, ARRAY)), "1 of 24 voxels that are NaN"),
    ],
    ids=["4-D", "RGB", "NaN"],
)
def test_what_is_not_a_scalar_volume_is_refused(
    tmp_path: Path, wrong: sitk.Image, words: str, suffix: str
) -> None:
    sitk.WriteImage(wrong, str(tmp_path / f"image{suffix}"))
    with pytest.raises(VolumeReadError, match=f"Cannot read 'image{suffix}': .*{words}"):
        read_volume(tmp_path / f"image{suffix}")


@pytest.mark.parametrize("is_compressed", [False, True])
@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_truncated_data_is_refused(tmp_path: Path, suffix: str, *, is_compressed: bool) -> None:
    path = tmp_path / f"image{suffix}"
    sitk.WriteImage(image(), str(path), is_compressed)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(VolumeReadError, match="damaged or truncated") as caught:
        read_volume(path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr"])
def test_a_wrong_checksum_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image{suffix}"
    sitk.WriteImage(image(), str(path), useCompression=True)
    data = path if suffix == ".nrrd" else tmp_path / "image.raw.gz"
    data.write_bytes(data.read_bytes()[:-8] + bytes(4) + data.read_bytes()[-4:])
    with pytest.raises(VolumeReadError, match="CRC check failed"):
        read_volume(path)


def meta(data: bytes = bytes(8), **fields: str) -> bytes:
    values = {
        "ObjectType": "Image", "NDims": "3", "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False", "DimSize": "2 2 2", "ElementType": "MET_UCHAR", **fields,
        "ElementDataFile": fields.get("ElementDataFile", "LOCAL"),
    }  # fmt: skip
    return "".join(f"{name} = {value}\n" for name, value in values.items()).encode() + data


def nrrd(
    *lines: str,
    sizes: str = "2 2 2",
    directions: str = "(1,0,0) (0,1,0) (0,0,1)",
    encoding: str = "raw",
    data: bytes = bytes(8),
) -> bytes:
    head = ["NRRD0004", "type: uchar", "dimension: 3", "space: left-posterior-superior",
            f"sizes: {sizes}", f"space directions: {directions}", f"encoding: {encoding}",
            "endian: little", "space origin: (0,0,0)", *lines]  # fmt: skip
    return "\n".join(head).encode() + b"\n\n" + data


WRONG = {
    "meta singular": (meta(TransformMatrix="1 0 0 1 0 0 0 0 1"), GeometryError, "singular"),
    "meta NaN spacing": (meta(ElementSpacing="nan 1 1"), GeometryError, "singular"),
    "meta zero spacing": (meta(ElementSpacing="0 1 1"), GeometryError, "singular"),
    "meta empty axis": (meta(DimSize="2 0 2"), VolumeReadError, "3-D and not empty"),
    "meta huge": (meta(DimSize="30000 30000 30000"), VolumeReadError, "too large"),
    "meta bomb": (meta(DimSize="1200 1200 1200"), VolumeReadError, "cannot hold them"),
    "meta outside": (meta(ElementDataFile="/etc/passwd"), VolumeReadError, "beside the header"),
    "meta above": (meta(ElementDataFile="../image.raw"), VolumeReadError, "beside the header"),
    "meta list": (meta(ElementDataFile="LIST"), VolumeReadError, "beside the header"),
    "meta missing": (meta(ElementDataFile="gone.raw"), VolumeReadError, "'gone.raw' .* is missing"),
    "nrrd singular": (nrrd(directions="(1,0,0) (1,0,0) (0,0,1)"), GeometryError, "singular"),
    "nrrd zero": (nrrd(directions="(0,0,0) (0,1,0) (0,0,1)"), GeometryError, "finite|singular"),
    "nrrd NaN": (nrrd(directions="(nan,0,0) (0,1,0) (0,0,1)"), VolumeReadError, "damaged"),
    "nrrd empty axis": (nrrd(sizes="2 0 2"), VolumeReadError, "damaged"),
    "nrrd huge": (nrrd(sizes="30000 30000 30000"), VolumeReadError, "too large"),
    "nrrd bomb": (nrrd(sizes="1200 1200 1200"), VolumeReadError, "cannot hold them"),
    "nrrd hidden data": (
        nrrd(encoding="gzip", data=gzip.compress(bytes(9))), VolumeReadError, "than the 8 bytes"
    ),
    "nrrd outside": (nrrd("data file: /etc/passwd"), VolumeReadError, "beside the header"),
    "nrrd pattern": (nrrd("data file: x%03d.raw 1 2 1"), VolumeReadError, "beside the header"),
    "nrrd missing": (nrrd("data file: gone.raw"), VolumeReadError, "'gone.raw' .* is missing"),
    "nrrd garbage": (b"NRRD0004\ngarbage\n\n", VolumeReadError, "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_headers_are_refused_in_a_sentence(tmp_path: Path, kind: str) -> None:
    data, error, words = WRONG[kind]
    (tmp_path / "image.dat").write_bytes(data)
    with pytest.raises(error, match=rf"Cannot read 'image\.dat': .*({words})") as caught:
        read_volume(tmp_path / "image.dat")
    assert "\n" not in str(caught.value)


def test_good_hand_made_headers_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(meta())
    (tmp_path / "b").write_bytes(nrrd())
    assert read_volume(tmp_path / "a").shape == read_volume(tmp_path / "b").shape == (2, 2, 2)
