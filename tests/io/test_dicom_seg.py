"""DICOM SEG: written from a series and read back, also by others, voxel for voxel."""

import numpy as np
import pydicom
import pytest

from fastsam3d.errors import VolumeWriteError
from fastsam3d.io import Code, Segment, Terminology, read_volume
from fastsam3d.io.dicom_seg import SeriesHeaders, write_dicom_seg
from fastsam3d.volume import Geometry, Mask, Volume
from tests.io.dicom_files import FRAME, STUDY, write_series

highdicom = pytest.importorskip("highdicom", reason="needs: pip install 'fastsam3d[dicom]'")

SHAPE = (10, 12, 7)
LIVER = Terminology(
    Code("SCT", "123037004", "Anatomical Structure"), Code("SCT", "10200004", "Liver")
)


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """An oblique series."""
    folder = tmp_path_factory.mktemp("series")
    turn = np.deg2rad(25)
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:2, :2] = [[-np.cos(turn), np.sin(turn)], [-np.sin(turn), -np.cos(turn)]]
    affine[:3, :3] = affine[:3, :3] @ np.diag([0.8, 1.1, 2.5])
    affine[:3, 3] = (12, -7, 300)
    write_series(folder, Volume(np.zeros(SHAPE, np.int16), Geometry(SHAPE, affine)))
    return folder


@pytest.fixture
def written(series, tmp_path):
    """Two objects that overlap, in two layers, and the file of them."""
    geometry = read_volume(series).geometry
    lower, upper = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    lower[2:5, 3:9, 1:4] = 4
    upper[4:8, 5:10, 2:6] = 9
    layers = [Mask(lower, geometry), Mask(upper, geometry)]
    segments = [
        Segment(label=4, name="liver", colour=(200, 80, 60), terminology=LIVER),
        Segment(label=9, name="find", colour=(0, 255, 0), layer=1),
    ]
    write_dicom_seg(layers, segments, SeriesHeaders.read(series), tmp_path / "seg.dcm")
    return [lower == 4, upper == 9], tmp_path / "seg.dcm"


def test_it_says_what_the_objects_are_and_what_made_them(written):
    found = pydicom.dcmread(written[1])
    assert (found.Modality, found.SegmentationType) == ("SEG", "BINARY")
    assert (found.StudyInstanceUID, found.FrameOfReferenceUID) == (STUDY, FRAME)
    liver, other = found.SegmentSequence
    assert (liver.SegmentLabel, other.SegmentLabel) == ("liver", "find")
    assert liver.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert liver.SegmentAlgorithmType == "SEMIAUTOMATIC"
    assert liver.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "fastsam3d"
    assert liver.RecommendedDisplayCIELabValue != other.RecommendedDisplayCIELabValue


def test_frames_lie_on_their_slices_by_the_headers_alone(written, series):
    masks, path = written
    found = pydicom.dcmread(path)
    geometry = read_volume(series).geometry
    whole = np.zeros((2, *SHAPE), bool)
    for frame, groups in zip(
        found.pixel_array, found.PerFrameFunctionalGroupsSequence, strict=True
    ):
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        lps = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        voxel = geometry.world_to_voxel(lps * (-1, -1, 1))
        np.testing.assert_allclose(voxel[:2], 0, atol=1e-3)
        k = round(float(voxel[2]))
        assert voxel[2] == pytest.approx(k, abs=1e-3)
        whole[number - 1, :, :, k] = frame.T
    np.testing.assert_array_equal(whole, masks)


def test_highdicom_reads_the_same_voxels(written, series):
    masks, path = written
    found = highdicom.seg.segread(path)
    uids = [header.SOPInstanceUID for header in SeriesHeaders.read(series).slices]
    pixels = found.get_pixels_by_source_instance(
        uids, ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(np.moveaxis(pixels, -1, 0).swapaxes(1, 3).astype(bool), masks)


def test_an_object_without_voxels_is_kept_beside_others(series, tmp_path):
    geometry = read_volume(series).geometry
    array = np.zeros(SHAPE, np.uint8)
    array[5, 5, 5] = 1
    segments = [Segment(label=n, name=f"object {n}", colour=(n, n, n)) for n in (1, 2)]
    headers = SeriesHeaders.read(series)
    write_dicom_seg([Mask(array, geometry)], segments, headers, tmp_path / "seg.dcm")
    assert len(pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence) == 2


def test_what_cannot_be_written_leaves_nothing(series, tmp_path):
    headers = SeriesHeaders.read(series)
    segments = [Segment(label=1, name="a", colour=(1, 2, 3))]
    empty = Mask(np.zeros(SHAPE, np.uint8), read_volume(series).geometry)
    with pytest.raises(VolumeWriteError, match="nothing to write"):
        write_dicom_seg([empty], segments, headers, tmp_path / "seg.dcm")
    other = Mask(np.ones((3, 3, 3), np.uint8), Geometry((3, 3, 3), np.eye(4)))
    with pytest.raises(VolumeWriteError, match="grid of the series"):
        write_dicom_seg([other], segments, headers, tmp_path / "seg.dcm")
    full = Mask(np.ones(SHAPE, np.uint8), read_volume(series).geometry)
    for header in headers.slices:
        del header.StudyInstanceUID
    with pytest.raises(VolumeWriteError, match="lack what DICOM requires"):
        write_dicom_seg([full], segments, headers, tmp_path / "seg.dcm")
    assert not list(tmp_path.iterdir())
