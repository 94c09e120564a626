"""A study of a DICOM series goes back as DICOM SEG, and only to that series."""

from pathlib import Path

import numpy as np
import pydicom
import pytest

import fastsam3d
from fastsam3d.errors import VolumeReadError, VolumeWriteError
from fastsam3d.io import read_volume
from fastsam3d.prompts import Point
from fastsam3d.session import Session, Study
from fastsam3d.volume import Geometry, Volume
from tests.io.dicom_files import SERIES, write_series
from tests.session.phantoms import ball_volume, fake_predictor

highdicom = pytest.importorskip("highdicom", reason="needs: pip install 'fastsam3d[dicom]'")


def series_of(volume: Volume, folder: Path) -> Path:
    folder.mkdir()
    write_series(folder, Volume(volume.array.astype(np.int16), volume.geometry))
    return folder


@pytest.fixture
def series(tmp_path: Path) -> Path:
    ball = ball_volume(shape=(40, 36, 30), centre_mm=(20, 18, 15), radius_mm=7)
    return series_of(ball, tmp_path / "ct")


@pytest.fixture
def study(series: Path) -> Study:
    study = Study(Session(fake_predictor()), read_volume(series))
    ball = study.add_object("ball", colour=(10, 200, 30))
    i, j, k = study.volume.geometry.world_to_voxel((20, 18, 15)).round().astype(int).tolist()
    study.add(ball, Point.voxel((i, j, k)))
    return study


def test_it_is_read_back_voxel_for_voxel(study: Study, series: Path, tmp_path: Path) -> None:
    study.export(tmp_path / "seg.dcm", series=series)

    found = highdicom.seg.segread(tmp_path / "seg.dcm")
    uids = [f"{SERIES}.{k + 1}" for k in range(30)]
    pixels = found.get_pixels_by_source_instance(
        uids, ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    mask = study.mask(1).array
    assert mask.any()
    np.testing.assert_array_equal(pixels[..., 0].T, mask)


def test_it_says_who_made_it(study: Study, series: Path, tmp_path: Path) -> None:
    study.export(tmp_path / "seg.dcm", series=series)

    found = pydicom.dcmread(tmp_path / "seg.dcm")
    assert (found.ManufacturerModelName, found.SoftwareVersions) == (
        "fastsam3d fake",
        fastsam3d.__version__,
    )
    assert found.SegmentSequence[0].SegmentLabel == "ball"


def test_it_needs_the_series(study: Study, tmp_path: Path) -> None:
    with pytest.raises(VolumeWriteError, match="give their folder"):
        study.export(tmp_path / "seg.dcm")
    with pytest.raises(VolumeReadError):
        study.export(tmp_path / "seg.dcm", series=tmp_path)
    assert not (tmp_path / "seg.dcm").exists()


def test_a_series_elsewhere_in_space_is_refused(study: Study, tmp_path: Path) -> None:
    moved = np.array(study.volume.geometry.affine)
    moved[2, 3] += 5
    geometry = Geometry(study.volume.shape, moved)
    other = series_of(Volume(study.volume.array, geometry), tmp_path / "other")

    with pytest.raises(VolumeWriteError, match="grid of the series"):
        study.export(tmp_path / "seg.dcm", series=other)
    assert not (tmp_path / "seg.dcm").exists()
