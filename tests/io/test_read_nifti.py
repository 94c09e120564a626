"""NIfTI in: every lie of a header is told in a sentence before memory is spent on it."""

import gzip
import logging
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the name of its documentation
from hypothesis import given
from hypothesis import strategies as st

from fastsam3d.errors import FastSAM3DError, GeometryError, VolumeReadError
from fastsam3d.io import read_mask, read_volume
from fastsam3d.io.streams import MAX_INFLATION
from tests.io.nifti_files import AFFINE, ARRAY, nifti


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "image.nii.gz"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8"])
def test_voxels_keep_value_dtype_and_order(file: Path, dtype: str, order: str) -> None:
    file.write_bytes(gzip.compress(nifti(ARRAY.astype(dtype), order=order)))
    volume = read_volume(file)
    assert volume.array.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(volume.array, ARRAY)
    np.testing.assert_array_equal(volume.geometry.affine, AFFINE)
    assert volume.modality is None


def test_content_decides_and_not_the_name(tmp_path: Path) -> None:
    for name, data in {
        "plain.nii.gz": nifti(),
        "packed.nii": gzip.compress(nifti()),
        "x": nifti(),
    }.items():
        (tmp_path / name).write_bytes(data)
        np.testing.assert_array_equal(read_volume(tmp_path / name).array, ARRAY)


def test_gzip_members_are_joined_and_padding_is_allowed(file: Path) -> None:
    data = nifti()
    file.write_bytes(gzip.compress(data[:100]) + gzip.compress(data[100:]) + bytes(64))
    np.testing.assert_array_equal(read_volume(file).array, ARRAY)


def test_scaled_values_are_float32_and_slope_zero_is_one(file: Path) -> None:
    file.write_bytes(nifti(scl_slope=0.5, scl_inter=-3.0))
    volume = read_volume(file)
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, ARRAY * 0.5 - 3)
    file.write_bytes(nifti(scl_slope=0.0, scl_inter=7.0))
    np.testing.assert_array_equal(read_volume(file).array, ARRAY)


@pytest.mark.parametrize(
    ("array", "shape"),
    [
        (ARRAY[:, :, 0], (2, 3, 1)),
        (ARRAY[:, :, :1], (2, 3, 1)),
        (ARRAY[..., None, None], (2, 3, 4)),
        (np.full((1, 1, 1), 7, "u1"), (1, 1, 1)),
        (np.full((5, 3, 2), 7, "f4"), (5, 3, 2)),
    ],
)
def test_thin_constant_and_trailing_single_axes_are_volumes(
    file: Path, array: np.ndarray, shape: tuple
) -> None:
    file.write_bytes(nifti(array))
    volume = read_volume(file)
    assert volume.shape == shape
    np.testing.assert_array_equal(volume.array, array.reshape(shape))


def test_a_2d_image_without_forms_is_one_millimetre_thick(file: Path) -> None:
    file.write_bytes(nifti(ARRAY[:, :, 0], sform_code=0, pixdim=(1, 2, 3, 0, 0, 0, 0, 0)))
    assert read_volume(file).geometry.spacing == (2.0, 3.0, 1.0)


def test_extreme_integers_are_read_as_they_are(file: Path) -> None:
    array = np.array([-(2**31), 2**31 - 1], "i4").reshape(1, 1, 2)
    file.write_bytes(nifti(array))
    np.testing.assert_array_equal(read_volume(file).array, array)


QFORM = {"qform_code": 1, "quatern": (0.0, 0.0, 1.0), "qoffset": (1.0, 2.0, 3.0)}


def test_geometry_is_of_the_sform_then_the_qform_then_the_voxel_sizes(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        file.write_bytes(nifti(**QFORM))
        np.testing.assert_array_equal(read_volume(file).geometry.affine, AFFINE)
    assert "sform and qform place the volume differently" in caplog.text
    file.write_bytes(nifti(sform_code=0, **QFORM))
    expected = np.diag([-2.0, -3.0, 4.0, 1.0])
    expected[:3, 3] = 1, 2, 3
    np.testing.assert_allclose(read_volume(file).geometry.affine, expected, atol=1e-12)
    file.write_bytes(nifti(sform_code=0))
    np.testing.assert_array_equal(read_volume(file).geometry.affine, np.diag([2, 3, 4, 1]))


def test_agreeing_forms_and_broken_qforms_beside_an_sform_are_silent(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        file.write_bytes(nifti(qform_code=1, qoffset=(-10.0, 20.0, 30.0)))
        read_volume(file)
        file.write_bytes(nifti(qform_code=1, pixdim=(1, np.nan, 0, -1, 1, 1, 1, 1)))
        np.testing.assert_array_equal(read_volume(file).geometry.affine, AFFINE)
    assert not caplog.records


def test_a_left_handed_qform_is_honoured(file: Path) -> None:
    file.write_bytes(nifti(sform_code=0, qform_code=1, pixdim=(-1, 2, 3, 4, 1, 1, 1, 1)))
    np.testing.assert_allclose(read_volume(file).geometry.affine, np.diag([2, 3, -4, 1]))


@pytest.mark.parametrize(
    ("unit", "factor"), [(0, 1.0), (1, 1000.0), (2, 1.0), (3, 0.001), (10, 1.0)]
)
def test_units_are_converted_to_millimetres(file: Path, unit: int, factor: float) -> None:
    file.write_bytes(nifti(xyzt_units=unit))
    np.testing.assert_allclose(read_volume(file).geometry.spacing, np.multiply((2, 3, 4), factor))
    file.write_bytes(nifti(xyzt_units=unit, sform_code=0, **QFORM))
    np.testing.assert_allclose(read_volume(file).geometry.origin, np.multiply((1, 2, 3), factor))


@pytest.mark.parametrize("name", ["image.nii", "image.nii.gz"])
def test_simpleitk_writes_what_we_read(tmp_path: Path, name: str) -> None:
    image = sitk.GetImageFromArray(ARRAY.T.copy())
    image.SetSpacing((0.4, 0.4, 5))
    image.SetOrigin((1, 2, 3))
    image.SetDirection((0, -1, 0, 0, 0, -1, 1, 0, 0))
    sitk.WriteImage(image, str(tmp_path / name))
    volume = read_volume(tmp_path / name)
    np.testing.assert_array_equal(volume.array, ARRAY)
    for index in ((0, 0, 0), (1, 2, 3)):
        lps = np.array(image.TransformIndexToPhysicalPoint(index))
        np.testing.assert_allclose(
            volume.geometry.voxel_to_world(index), lps * (-1, -1, 1), atol=1e-5
        )


SROW = tuple(AFFINE[:3].ravel())
NAN_VOXEL = np.where(ARRAY == 5, np.nan, ARRAY).astype("f4")


def dims(*dim: int) -> bytes:
    return nifti(dim=(*dim, *[1] * (8 - len(dim))))


def zooms(*sizes: float, **fields: object) -> bytes:
    return nifti(sform_code=0, pixdim=(1, *sizes, 1, 1, 1, 1), **fields)


NOT_A_VOLUME = {
    "4-D": (nifti(np.zeros((2, 3, 4, 2), "i2")), r"must be 3-D, got shape \(2, 3, 4, 2\)"),
    "5-D": (nifti(np.zeros((2, 3, 4, 1, 3), "i2")), "must be 3-D"),
    "RGB": (nifti(datatype=128, bitpix=24), "one real number each, got RGB"),
    "complex": (nifti(datatype=32, bitpix=64), "got complex64"),
    "unknown type": (nifti(datatype=77), "got datatype code 77"),
    "wrong bits": (nifti(bitpix=32), "contradicts itself, got 32 bits"),
    "dim 0": (dims(3, 2, 0, 4), "2 to 7 positive sizes"),
    "negative dim": (dims(3, 2, -3, 4), "2 to 7 positive sizes"),
    "8 axes": (dims(8, 2, 3, 4), "2 to 7 positive sizes"),
    "1 axis": (dims(1, 24), "2 to 7 positive sizes"),
    "huge": (dims(3, 30000, 30000, 30000), "too large, .* 50291.4 GiB"),
    "NaN voxel": (nifti(NAN_VOXEL), "1 of 24 voxels that are NaN or infinite"),
    "all inf": (nifti(np.full((2, 3, 4), np.inf, "f4")), "24 of 24 voxels"),
    "overflow": (nifti(scl_slope=3e38), "NaN or infinite"),
    "NaN slope": (nifti(scl_slope=np.nan), "scaling must be finite, got slope nan"),
    "inf intercept": (nifti(scl_inter=np.inf), "scaling must be finite"),
    "truncated": (nifti()[:-1], "truncated, got 47 of the 48"),
    "header only": (nifti()[:352], "truncated, got 0 of the 48"),
    "half header": (nifti()[:200], "truncated, got 200 of 348"),
    "too long": (nifti() + bytes(5000), "more than the 48 bytes"),
    "pair": (nifti(magic=b"ni1\0"), r"got a \.hdr/\.img pair"),
    "Analyze": (nifti(magic=b"\0\0\0\0"), "got an Analyze 7.5"),
    "early data": (nifti(vox_offset=100.0), "must start 352 bytes or more"),
    "far data": (nifti(vox_offset=1e20), "must start 352 bytes or more"),
    "NaN offset": (nifti(vox_offset=np.nan), "must start 352 bytes or more"),
    "empty": (b"", "File is empty"),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(99), "got a PNG picture"),
    "ZIP": (b"PK\3\4" + bytes(99), "got a ZIP archive"),
    "HTML": (b"\n<!DOCTYPE html><html>", "got an HTML or XML page"),
    "text": (b"hello" * 99, "got unknown bytes"),
    "one DICOM file": (bytes(128) + b"DICM", "give the folder of its series"),
}
NOT_A_GRID = {
    "zero size": (zooms(2, 0, 4), "must be positive"),
    "NaN size": (zooms(np.nan, 3, 4), "must be positive"),
    "infinite size": (zooms(np.inf, 3, 4), "must be positive"),
    "negative size": (zooms(2, 3, -4, **QFORM), "must be positive"),
    "NaN rotation": (nifti(sform_code=0, qform_code=1, quatern=(np.nan, 0, 0)), "finite"),
    "singular": (nifti(srow=SROW[:8] + (0,) * 4), "singular"),
    "signalling NaN": (nifti()[:280] + b"\1\0\x80\x7f" + nifti()[284:], "finite"),
    "NaN sform": (nifti(srow=(np.nan, *SROW[1:])), "finite"),
}
WRONG = {
    **{kind: (VolumeReadError, *rest) for kind, rest in NOT_A_VOLUME.items()},
    **{kind: (GeometryError, *rest) for kind, rest in NOT_A_GRID.items()},
}


@pytest.mark.parametrize("is_packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("kind", WRONG)
def test_wrong_files_are_refused_in_a_sentence(file: Path, kind: str, *, is_packed: bool) -> None:
    error, data, words = WRONG[kind]
    file.write_bytes(gzip.compress(data) if is_packed else data)
    with pytest.raises(error, match=rf"^Cannot read 'image\.nii\.gz': .*({words})") as caught:
        read_volume(file)
    assert "\n" not in str(caught.value)
    assert str(file.parent) not in str(caught.value)


@given(st.dictionaries(st.integers(0, 351), st.integers(0, 255), min_size=1, max_size=6))
def test_any_header_gives_a_volume_or_a_typed_error(changes: dict[int, int]) -> None:
    data = bytearray(nifti(ARRAY.astype("f4")))
    for position, value in changes.items():
        data[position] = value
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "image.nii"
        file.write_bytes(data)
        try:
            volume = read_volume(file)
        except FastSAM3DError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
        else:
            assert np.isfinite(volume.geometry.affine).all()
            assert np.isfinite(volume.array).all()


PACKED = gzip.compress(nifti())


@pytest.mark.parametrize(
    "data",
    [
        PACKED[:-8] + b"\0\0\0\0" + PACKED[-4:],
        PACKED[:-20],
        PACKED[:3],
        PACKED + b"garbage",
        PACKED[:40] + b"\xff\xff" + PACKED[42:],
    ],
    ids=["wrong CRC", "cut off", "cut in its header", "garbage behind", "flipped bits"],
)
def test_damaged_gzip_is_refused(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    with pytest.raises(VolumeReadError, match="Compressed data is damaged or truncated"):
        read_volume(file)


def test_a_gzip_bomb_costs_no_memory(file: Path) -> None:
    # 100 MB of zeros behind a small volume; and a header that announces more than can follow.
    file.write_bytes(gzip.compress(nifti() + bytes(100_000_000)))
    tracemalloc.start()
    with pytest.raises(VolumeReadError, match="more than the 48 bytes"):
        read_volume(file)
    side = 1200
    assert MAX_INFLATION * len(PACKED) < 2 * side**3
    file.write_bytes(gzip.compress(nifti(dim=(3, side, side, side, 1, 1, 1, 1))))
    with pytest.raises(VolumeReadError, match="bytes on disk cannot hold them"):
        read_volume(file)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_missing_and_unreadable_files_are_refused(tmp_path: Path, file: Path) -> None:
    with pytest.raises(VolumeReadError, match="No such file or folder"):
        read_volume(tmp_path / "none.nii")
    with pytest.raises(VolumeReadError, match="No such file or folder"):
        read_volume("a\0b.nii")
    with pytest.raises(FastSAM3DError, match="No such file"):
        read_mask(file)


def test_masks_are_labels(file: Path) -> None:
    file.write_bytes(nifti(ARRAY.astype("f4")))
    mask = read_mask(file)
    assert mask.array.dtype == np.uint8
    file.write_bytes(nifti(ARRAY * 100))
    assert read_mask(file).array.dtype == np.uint16
    file.write_bytes(nifti(ARRAY - 1))
    with pytest.raises(VolumeReadError, match=r"'image\.nii\.gz' as a mask: .* whole numbers"):
        read_mask(file)


def test_compressed_voxels_are_inflated_into_their_place(file: Path) -> None:
    array = np.random.default_rng(0).integers(-1000, 1000, (128, 128, 96)).astype(np.int16)
    file.write_bytes(gzip.compress(nifti(array), 1))
    read_volume(file)
    tracemalloc.start()
    volume = read_volume(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(volume.array, array)
    assert peak < 1.6 * array.nbytes
