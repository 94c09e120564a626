"""A CT is shown around the tissue that was clicked; nothing else is shown through a window."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastsam3d.preprocess.pipeline import prepare_rois
from fastsam3d.preprocess.roi import Roi
from fastsam3d.preprocess.window import ct_window
from fastsam3d.volume import Geometry, Volume
from fastsam3d.volume.hounsfield import is_hounsfield

AIR, FAT, LIVER, BONE = -1000.0, -100.0, 60.0, 700.0


def phantom(modality: str | None = None, affine=None) -> Volume:
    """Return a body of slabs in air, along the last axis as stored."""
    array = np.full((24, 24, 40), AIR, np.float32)
    for n, value in enumerate((FAT, LIVER, BONE)):
        array[4:20, 4:20, 8 * n + 8 : 8 * n + 16] = value
    geometry = Geometry(array.shape, np.eye(4) if affine is None else affine)
    return Volume(array, geometry, modality)


def roi_at(volume: Volume, k: int) -> Roi:
    return Roi.around((12, 12, k), volume.geometry, 1.0, 32)


@pytest.mark.parametrize(
    ("k", "window"),
    [(12, (-250, 50)), (20, (-90, 210)), (28, (0, 1400)), (38, (-2000, 0))],
    ids=["fat", "liver", "bone", "air"],
)
def test_the_window_is_around_the_tissue_and_reaches_water(k, window) -> None:
    volume = phantom()
    assert ct_window(volume, roi_at(volume, k), 150.0) == window


def test_the_tissue_is_that_of_the_click_however_the_scan_is_stored() -> None:
    turned = np.array([[0, 0, -2.0, 90], [0, 1, 0, 5], [1, 0, 0, 3], [0, 0, 0, 1]])
    volume = phantom(affine=turned)
    assert ct_window(volume, roi_at(volume, 20), 150.0) == (-90, 210)


def test_a_single_bad_voxel_does_not_move_the_window() -> None:
    volume = phantom()
    volume.array[12, 12, 20] = 3000
    assert ct_window(volume, roi_at(volume, 20), 150.0) == (-90, 210)


def test_slices_thicker_than_the_reach_give_the_clicked_slice() -> None:
    volume = phantom(affine=np.diag([1, 1, 10, 1]))
    assert ct_window(volume, roi_at(volume, 16), 150.0) == (-90, 210)


def test_an_roi_beside_the_scan_uses_the_nearest_voxels() -> None:
    volume = phantom()
    assert ct_window(volume, Roi.around((12, 12, 99), volume.geometry, 1.0, 32), 150.0) is not None


def test_what_is_no_ct_or_has_no_focus_has_no_window() -> None:
    volume = phantom()
    assert ct_window(volume, replace(roi_at(volume, 20), focus_voxel=None), 150.0) is None
    assert ct_window(phantom("MR"), roi_at(volume, 20), 150.0) is None


def test_a_window_brings_out_soft_tissue() -> None:
    volume = phantom()
    volume.array[12:16, 4:20, 16:24] += 40  # a lesion in the liver
    roi = roi_at(volume, 20)
    options = {"normalisation": "roi_percentile_zscore"}
    wide, narrow = (
        prepare_rois(volume, [roi], ct_window_hu=width, **options)[0, 0] for width in (None, 150.0)
    )
    (liver, lesion) = ((14, 16, 16), (18, 16, 16))
    contrasts = [float(image[lesion] - image[liver]) for image in (wide, narrow)]
    assert contrasts[1] > 2 * contrasts[0] > 0


def test_another_focus_is_another_picture() -> None:
    volume = phantom()
    roi = roi_at(volume, 20)
    moved = replace(roi, focus_voxel=(12.0, 12.0, 28.0))
    images = prepare_rois(
        volume, [roi, moved], normalisation="roi_percentile_zscore", ct_window_hu=150.0
    )
    assert roi != moved
    assert not torch.equal(images[0], images[1])


@pytest.mark.parametrize(
    ("share_of_air", "modality", "expected"),
    [(0.2, None, True), (0.01, None, False), (0.2, "MR", False), (0.0, "CT", True)],
)
def test_ct_is_told_by_its_header_or_its_air(share_of_air, modality, expected) -> None:
    array = np.zeros((20, 20, 20), np.int16)
    array[: round(20 * share_of_air)] = -1000
    if share_of_air == 0.01:
        array[0, 0] = -1000
    assert is_hounsfield(array, modality) is expected
