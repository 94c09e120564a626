"""4-D files: a time point is chosen, or all are read; nothing is chosen silently."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the name of its documentation

from fastsam3d.errors import VolumeReadError
from fastsam3d.io import read_mask, read_time_points, read_volume, write_mask
from tests.io.nifti_files import ARRAY, nifti

SERIES = np.stack([ARRAY, ARRAY + 100, ARRAY + 200], axis=-1)
KINDS = ("nii", "nii.gz", "nrrd", "mha")


def write_series(folder: Path, kind: str) -> Path:
    path = folder / f"cine.{kind}"
    if kind.startswith("nii"):
        data = nifti(SERIES, scl_slope=2.0)
        path.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    else:
        frames = [sitk.GetImageFromArray(2 * SERIES[..., n].T.copy()) for n in range(3)]
        sitk.WriteImage(sitk.JoinSeries(frames), str(path))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_time_point_is_chosen_or_all_are_read(tmp_path: Path, kind: str) -> None:
    path = write_series(tmp_path, kind)
    every = read_time_points(path)
    assert len(every) == 3
    for time, volume in enumerate(every):
        np.testing.assert_array_equal(volume.array, 2 * SERIES[..., time])
        one = read_volume(path, time=time)
        np.testing.assert_array_equal(one.array, volume.array)
        assert one.geometry == volume.geometry


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("time", "words"),
    [
        (None, r"got shape \(2, 3, 4, 3\); choose a time point, time=0 to time=2"),
        (3, "0 to 2, got 3"),
        (-1, "0 to 2, got -1"),
        (True, "0 to 2, got True"),
        ("all", "0 to 2, got 'all'"),
    ],
)
def test_no_time_point_is_taken_silently(
    tmp_path: Path, kind: str, time: object, words: str
) -> None:
    with pytest.raises(VolumeReadError, match=words):
        read_volume(write_series(tmp_path, kind), time=time)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_of_a_time_point_is_a_3d_file_of_its_grid(tmp_path: Path, kind: str) -> None:
    volume = read_volume(write_series(tmp_path, kind), time=1)
    target = tmp_path / f"mask.{kind}"
    write_mask(volume.new_mask((ARRAY > 10).astype(np.uint8)), target)
    again = read_mask(target)
    np.testing.assert_array_equal(again.array, ARRAY > 10)
    assert again.geometry.is_close(volume.geometry)


def test_a_3d_file_has_one_time_point(tmp_path: Path) -> None:
    path = tmp_path / "one.nii"
    path.write_bytes(nifti())
    (only,) = read_time_points(path)
    np.testing.assert_array_equal(only.array, read_volume(path, time=0).array)
    with pytest.raises(VolumeReadError, match="must be 0 to 0, got 1"):
        read_volume(path, time=1)


@pytest.mark.parametrize("time", [0, 2])
def test_a_truncated_series_is_refused_whichever_time_is_read(tmp_path: Path, time: int) -> None:
    path = tmp_path / "cut.nii.gz"
    path.write_bytes(gzip.compress(nifti(SERIES)[:-1]))
    with pytest.raises(VolumeReadError, match="truncated, got 143 of the 144"):
        read_volume(path, time=time)
