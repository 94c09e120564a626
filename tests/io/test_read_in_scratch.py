"""Large scans may lie in a scratch file: the same values, for less memory."""

import errno
import gzip
import tempfile
from pathlib import Path

import numpy as np
import pytest

from fastsam3d.errors import VolumeReadError
from fastsam3d.io import nifti as nifti_reader
from fastsam3d.io import read_volume, streams
from tests.io.nifti_files import ARRAY, nifti


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in whose eyes every volume is large and every piece small."""
    monkeypatch.setattr(nifti_reader, "MIN_SCRATCH_BYTES", 1)
    monkeypatch.setattr(streams, "_PIECE_BYTES", 7)
    path = tmp_path / "image.nii.gz"
    path.write_bytes(gzip.compress(nifti()))
    return path


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every scratch file that is opened."""
    files: list[object] = []
    real = tempfile.TemporaryFile

    def opened(*args: object, **kwargs: object) -> object:
        files.append(real(*args, **kwargs))  # type: ignore[call-overload]
        return files[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", opened)
    return files


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4"])
def test_integers_are_the_same_and_may_be_changed(
    file: Path, made: list[object], dtype: str
) -> None:
    file.write_bytes(gzip.compress(nifti(ARRAY.astype(dtype))))
    volume = read_volume(file, in_scratch=True)
    assert len(made) == 1
    assert volume.array.dtype == np.dtype(dtype)
    assert volume.array.flags.f_contiguous
    np.testing.assert_array_equal(volume.array, ARRAY)
    volume.array[0, 0, 0] += 1  # what torch asks of memory that it aliases
    np.testing.assert_array_equal(read_volume(file, in_scratch=True).array, ARRAY)


def test_only_on_request(file: Path, made: list[object]) -> None:
    read_volume(file)
    assert not made


@pytest.mark.parametrize(
    "content", [nifti(ARRAY.astype("f4")), nifti(scl_slope=2.0), nifti(order=">")]
)
def test_what_is_computed_as_a_whole_stays_in_memory(
    file: Path, made: list[object], content: bytes
) -> None:
    file.write_bytes(gzip.compress(content))
    np.testing.assert_array_equal(read_volume(file, in_scratch=True).array, read_volume(file).array)
    assert not made


def test_small_volumes_stay_in_memory(
    file: Path, made: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nifti_reader, "MIN_SCRATCH_BYTES", ARRAY.nbytes + 1)
    read_volume(file, in_scratch=True)
    assert not made


def test_a_full_folder_makes_it_read_into_memory(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    np.testing.assert_array_equal(read_volume(file, in_scratch=True).array, ARRAY)


@pytest.mark.parametrize("num_missing", [1, ARRAY.nbytes])
def test_truncation_is_told_as_ever(file: Path, num_missing: int) -> None:
    file.write_bytes(gzip.compress(nifti()[:-num_missing]))
    with pytest.raises(VolumeReadError, match=f"got {ARRAY.nbytes - num_missing} of the"):
        read_volume(file, in_scratch=True)
