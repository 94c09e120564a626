"""A snapshot shows the right voxels on the right side, and survives the disk."""

from pathlib import Path

import numpy as np
import pytest

from fastsam3d.errors import DatasetError
from fastsam3d.eval.snapshot import (
    MAX_PIXELS,
    load_snapshot,
    make_snapshot,
    save_snapshot,
    snapshot_name,
)
from fastsam3d.prompts import Point
from fastsam3d.volume import Geometry, Volume

SHAPE = (40, 30, 20)


def scan(affine: np.ndarray, shape: tuple[int, int, int] = SHAPE) -> Volume:
    array = np.full(shape, 100, dtype=np.int16)
    array[shape[0] // 2 :] = 900  # bright where i is high
    return Volume(array, Geometry(shape, affine), "MR")


def cube(*corner: int, side: int = 6, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, dtype=np.uint8)
    mask[tuple(slice(c, c + side) for c in corner)] = 1
    return mask


def test_the_patients_right_is_on_the_left_of_the_picture() -> None:
    # i runs to the patient's right, so high i (bright) belongs on the left.
    snapshot = make_snapshot(scan(np.eye(4)), cube(18, 10, 8), cube(18, 10, 8))
    axial, coronal, sagittal = snapshot.slices

    assert [view.plane for view in snapshot.slices] == ["axial", "coronal", "sagittal"]
    assert axial.image[0, 0] == coronal.image[0, 0] == 255
    assert axial.image[0, -1] == coronal.image[0, -1] == 0
    assert len(np.unique(sagittal.image)) == 1


def test_slices_hold_truth_mask_and_the_clicks_that_lie_in_them() -> None:
    truth, mask = cube(18, 10, 8), cube(20, 10, 8)
    clicks = [Point.voxel((20, 12, 10)), Point.voxel((24, 12, 10), positive=False)]
    volume = scan(np.diag([1.0, 1.0, 3.0, 1.0]))
    axial, _, sagittal = make_snapshot(volume, truth, mask, clicks).slices

    assert axial.truth.sum() == axial.mask.sum() == 36
    assert (axial.truth & axial.mask).sum() == 24
    assert sagittal.pixel_mm == (3.0, 1.0)
    assert [positive for _, _, positive in axial.clicks] == [True, False]
    row, column, _ = axial.clicks[0]
    assert axial.truth[round(row), round(column)]
    assert len(sagittal.clicks) == 1


def test_a_large_slice_is_thinned_and_an_absent_structure_shows_the_scan() -> None:
    shape = (600, 40, 10)
    volume = scan(np.diag([0.5, 0.5, 0.5, 1.0]), shape)
    nothing = np.zeros(shape, dtype=np.uint8)
    axial = make_snapshot(volume, nothing, nothing).slices[0]

    assert max(axial.image.shape) <= MAX_PIXELS
    assert axial.pixel_mm == (1.5, 1.5)
    assert not axial.truth.any()


def test_what_is_saved_is_what_is_read(tmp_path: Path) -> None:
    clicks = [Point.voxel((20, 12, 10))]
    made = make_snapshot(scan(np.eye(4)), cube(18, 10, 8), cube(20, 10, 8), clicks)
    path = tmp_path / "snapshots" / snapshot_name(("a__1/x", 3, 0, 7))
    save_snapshot(path, made)
    read = load_snapshot(path)

    assert path.name == "a__1_x-3-0-7.npz"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    for before, after in zip(made.slices, read.slices, strict=True):
        np.testing.assert_array_equal(before.image, after.image)
        np.testing.assert_array_equal(before.truth, after.truth)
        np.testing.assert_array_equal(before.mask, after.mask)
        assert (before.plane, before.pixel_mm) == (after.plane, after.pixel_mm)
        assert before.clicks == after.clicks


def test_a_damaged_snapshot_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.npz"
    path.write_bytes(b"not a zip")
    with pytest.raises(DatasetError, match="no readable snapshot"):
        load_snapshot(path)
    with pytest.raises(DatasetError, match="no readable snapshot"):
        load_snapshot(tmp_path / "absent.npz")
