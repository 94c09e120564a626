"""A DICOM folder is one regular stack of slices, or an error that names the slice at fault."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from fastsam3d.errors import VolumeReadError
from fastsam3d.io import dicom, read_volume

ROWS, COLUMNS, SLICES = 4, 3, 5
# Oblique: rows and columns turned about two axes, exactly orthonormal.
ORIENTATION = [0.6, 0.8, 0.0, 0.0, 0.0, -1.0]
NORMAL = np.cross(ORIENTATION[:3], ORIENTATION[3:])
STEP = 2.5


def stored(index: int) -> np.ndarray:
    return np.arange(ROWS * COLUMNS, dtype="<i2").reshape(ROWS, COLUMNS) + 100 * index


def dataset(index: int, **changes: object) -> Dataset:
    """Return slice `index`; a change of None removes the attribute."""
    values: dict[str, object] = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "SOPInstanceUID": f"1.2.3.{index}",
        "SeriesInstanceUID": "1.2.9", "StudyInstanceUID": "1.2.8", "Modality": "CT",
        "SeriesDescription": "abdomen", "Rows": ROWS, "Columns": COLUMNS,
        "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1,
        "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
        "PixelSpacing": [0.7, 0.5], "SliceThickness": 2.0, "ImageOrientationPatient": ORIENTATION,
        "ImagePositionPatient": (np.array([10, 20, 30]) + index * STEP * NORMAL).round(6).tolist(),
        "PixelData": stored(index).tobytes(), **changes,
    }  # fmt: skip
    made = Dataset()
    for name, value in values.items():
        if value is not None:
            setattr(made, name, value)
    return made


def save(made: Dataset, path: Path, syntax: UID = ExplicitVRLittleEndian) -> None:
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.save_as(path, enforce_file_format=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good series whose file names are not in the order of its slices."""
    for index in range(SLICES):
        save(dataset(index), tmp_path / f"{(index * 2) % SLICES}.dcm")
    return tmp_path


def replace(folder: Path, index: int, **changes: object) -> None:
    save(dataset(index, **changes), folder / f"{(index * 2) % SLICES}.dcm")


def test_slices_are_sorted_and_placed(folder: Path) -> None:
    (folder / "notes.txt").write_text("not DICOM")
    (folder / "sub").mkdir()
    volume = read_volume(folder)
    assert volume.shape == (COLUMNS, ROWS, SLICES)
    assert volume.modality == "CT"
    assert volume.array.dtype.kind == "i"
    expected = np.stack([stored(index).T for index in range(SLICES)], axis=-1)
    np.testing.assert_array_equal(volume.array, expected)
    np.testing.assert_allclose(volume.geometry.spacing, (0.5, 0.7, STEP), atol=1e-6)
    # The standard's equation: position + column * spacing * row cosine + row * ...
    i, j, k = 2, 3, 4
    lps = dataset(k).ImagePositionPatient + np.array(ORIENTATION[:3]) * 0.5 * i
    lps = lps + np.array(ORIENTATION[3:]) * 0.7 * j
    np.testing.assert_allclose(
        volume.geometry.voxel_to_world((i, j, k)), lps * (-1, -1, 1), atol=1e-5
    )


@pytest.mark.parametrize(
    ("tag", "modality"), [("MR", "MR"), ("PT", "PET"), ("US", None), (None, None)]
)
def test_the_modality_is_the_tag(folder: Path, tag: str | None, modality: str | None) -> None:
    for index in range(SLICES):
        replace(folder, index, Modality=tag)
    assert read_volume(folder).modality == modality


def test_each_slice_has_its_own_rescale(folder: Path) -> None:
    for index in range(SLICES):
        slope, intercept = 1.0 + 0.25 * index, -10.0 * index
        replace(folder, index, RescaleSlope=slope, RescaleIntercept=intercept)
    volume = read_volume(folder)
    assert volume.array.dtype == np.float32
    for path in folder.iterdir():
        item = pydicom.dcmread(path)
        index = int(item.SOPInstanceUID.split(".")[-1])
        expected = item.pixel_array * float(item.RescaleSlope) + float(item.RescaleIntercept)
        np.testing.assert_allclose(volume.array[:, :, index], expected.T)


def test_whole_rescale_stays_integer(folder: Path) -> None:
    for index in range(SLICES):
        replace(folder, index, RescaleSlope=1, RescaleIntercept=-1024)
    volume = read_volume(folder)
    assert volume.array.dtype.kind == "i"
    assert volume.array.min() == -1024


def test_one_slice_is_a_volume_of_its_thickness(tmp_path: Path) -> None:
    save(dataset(0), tmp_path / "a")
    volume = read_volume(tmp_path)
    assert volume.shape == (COLUMNS, ROWS, 1)
    np.testing.assert_allclose(volume.geometry.spacing, (0.5, 0.7, 2.0))


def test_a_tilted_gantry_keeps_its_sheared_grid(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    step = STEP * NORMAL + np.array([0, 0, -0.5])
    for index in range(SLICES):
        replace(folder, index, ImagePositionPatient=(index * step).round(6).tolist())
    geometry = read_volume(folder).geometry
    assert "tilted gantry" in caplog.text
    np.testing.assert_allclose(geometry.affine[:3, 2], step * (-1, -1, 1), atol=1e-6)


def test_a_missing_slice_is_refused(folder: Path) -> None:
    (folder / "4.dcm").unlink()  # slice 2
    with pytest.raises(
        VolumeReadError,
        match=r"missing after 1\.2\.3\.1, got a step of 5\.000 mm where the others have 2\.500",
    ):
        read_volume(folder)


def test_irregular_slices_are_refused(folder: Path) -> None:
    near = (np.array([10, 20, 30]) + 1.8 * STEP * NORMAL).tolist()
    replace(folder, 2, ImagePositionPatient=near)
    with pytest.raises(VolumeReadError, match=r"A slice is (irregular|missing) after 1\.2\.3\.\d"):
        read_volume(folder)


def test_doubled_positions_are_refused(folder: Path) -> None:
    copy = dataset(1).ImagePositionPatient
    save(dataset(7, ImagePositionPatient=copy), folder / "copy.dcm")
    with pytest.raises(VolumeReadError, match=r"1\.2\.3\.[17] and 1\.2\.3\.[17] have one position"):
        read_volume(folder)


def test_a_series_of_one_position_is_refused(folder: Path) -> None:
    for index in range(SLICES):
        replace(folder, index, ImagePositionPatient=[1, 2, 3])
    with pytest.raises(VolumeReadError, match="keep one time point, echo or copy"):
        read_volume(folder)


def test_slices_off_the_line_are_refused(folder: Path) -> None:
    aside = (np.array(dataset(2).ImagePositionPatient) + np.array(ORIENTATION[:3])).tolist()
    replace(folder, 2, ImagePositionPatient=aside)
    with pytest.raises(VolumeReadError, match=r"on one line, got slice 1\.2\.3\.2 1\.000 mm off"):
        read_volume(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
            r"got orientation .* in slice 1\.2\.3\.2",
        ),
        ({"Rows": 3, "Columns": 4}, r"got size \(4, 3\) beside \(3, 4\) in slice 1\.2\.3\.2"),
        ({"PixelSpacing": [0.7, 0.6]}, r"got PixelSpacing .* in slice 1\.2\.3\.2"),
        (
            {"ImagePositionPatient": None},
            r"1\.2\.3\.2 lacks a usable geometry .*ImagePositionPatient",
        ),
        ({"ImageOrientationPatient": None}, r"1\.2\.3\.2 lacks a usable geometry"),
        ({"PixelSpacing": None}, r"1\.2\.3\.2 lacks a usable geometry .*PixelSpacing"),
        ({"PixelSpacing": [0, 0.5]}, r"1\.2\.3\.2 has an impossible geometry, got size"),
        ({"ImagePositionPatient": [1, 2]}, r"1\.2\.3\.2 has an impossible geometry, got position"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "impossible geometry, got ImageOrient"),
        ({"ImageOrientationPatient": [1, 0, 0]}, "impossible geometry, got ImageOrient"),
        ({"Rows": 0}, "impossible geometry, got size"),
        ({"SamplesPerPixel": 3}, r"got 1 frames of 3 samples in 1\.2\.3\.2"),
        ({"NumberOfFrames": 8}, "got 8 frames of 1 samples"),
        (
            {"PixelData": bytes(2), "Rows": 60000, "Columns": 60000},
            r"1\.2\.3\.2: File is truncated",
        ),
    ],
)
def test_a_slice_that_does_not_fit_is_named(folder: Path, changes: dict, words: str) -> None:
    replace(folder, 2, **changes)
    with pytest.raises(VolumeReadError, match=f"Cannot read '{folder.name}': .*{words}") as caught:
        read_volume(folder)
    assert "\n" not in str(caught.value)


def test_several_series_are_listed_and_one_can_be_chosen(folder: Path) -> None:
    save(dataset(9, SeriesInstanceUID="1.2.10", SeriesDescription="scout"), folder / "scout.dcm")
    with pytest.raises(
        VolumeReadError,
        match=r"holds 2 series, got 1\.2\.9 \(CT, abdomen, 5 files\); 1\.2\.10 \(CT, scout, 1 file",
    ):
        read_volume(folder)
    assert read_volume(folder, series_uid="1.2.10").shape == (COLUMNS, ROWS, 1)
    with pytest.raises(VolumeReadError, match=r"does not hold series '7', got 1\.2\.9"):
        read_volume(folder, series_uid="7")


def test_reports_beside_a_series_are_listed(folder: Path) -> None:
    report = Dataset()
    report.SOPClassUID, report.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.11", "1.7"
    report.SeriesInstanceUID, report.Modality = "1.5", "SR"
    save(report, folder / "report.dcm")
    with pytest.raises(VolumeReadError, match=r"1\.5 \(SR, no description, 1 files\)"):
        read_volume(folder)
    with pytest.raises(VolumeReadError, match=r"Slice 1\.7 lacks a usable geometry"):
        read_volume(folder, series_uid="1.5")


def test_folders_without_dicom_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VolumeReadError, match="holds no DICOM series"):
        read_volume(tmp_path)


def test_too_many_files_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom, "MAX_FILES", 4)
    with pytest.raises(VolumeReadError, match="at most 4 files, got 5"):
        read_volume(folder)


def test_deflated_files_are_refused_unread(folder: Path) -> None:
    save(dataset(2), folder / "4.dcm", UID(dicom.DEFLATED_SYNTAX))
    with pytest.raises(VolumeReadError, match=r"'4\.dcm' is deflated DICOM"):
        read_volume(folder)


def test_pixels_that_cannot_be_decoded_are_refused(folder: Path) -> None:
    made = dataset(2)
    made.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8 not a picture \xff\xd9" * 4])
    save(made, folder / "4.dcm", pydicom.uid.JPEG2000Lossless)
    with pytest.raises(VolumeReadError, match=r"Pixels of slice 1\.2\.3\.2 cannot be decoded"):
        read_volume(folder)


def test_files_cut_in_their_header_are_refused(folder: Path) -> None:
    last = folder / "3.dcm"  # Without it the rest would be a regular stack.
    last.write_bytes(last.read_bytes()[:300])
    with pytest.raises(VolumeReadError, match=r"'3\.dcm' belongs to no series"):
        read_volume(folder)


@pytest.mark.parametrize("num_bytes", [2, 10, 24])
def test_files_cut_in_their_pixels_are_refused(folder: Path, num_bytes: int) -> None:
    path = folder / "4.dcm"
    path.write_bytes(path.read_bytes()[:-num_bytes])
    with pytest.raises(VolumeReadError, match=r"1\.2\.3\.2"):
        read_volume(folder)


def test_a_dicomdir_is_not_a_slice(folder: Path) -> None:
    index = Dataset()
    index.SOPClassUID, index.SOPInstanceUID = dicom.DICOMDIR_CLASS, "1.6"
    save(index, folder / "DICOMDIR")
    assert read_volume(folder).shape == (COLUMNS, ROWS, SLICES)
