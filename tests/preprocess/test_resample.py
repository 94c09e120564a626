"""Separable resampling: interpolation where fine, exact averages where coarse."""

import numpy as np
import pytest
import torch

from fastsam3d.preprocess.resample import (
    apply_taps,
    apply_taps_axiswise,
    axis_matrix,
    box_taps,
    linear_taps,
    resampling_taps,
)


def test_linear_taps_reproduce_a_ramp_and_repeat_its_ends():
    taps = linear_taps(np.array([-0.4, 0.25, 3.0, 4.3]), 5)
    values = (np.arange(5.0)[taps.index] * taps.weights).sum(1)
    np.testing.assert_allclose(values, [0.0, 0.25, 3.0, 4.0])
    assert taps.inside.tolist() == [True, True, True, True]


def test_positions_beyond_the_outer_faces_are_outside():
    assert linear_taps(np.array([-0.51, -0.5, 4.5, 4.51]), 5).inside.tolist() == [
        False, True, True, False,
    ]  # fmt: skip


def test_box_taps_average_the_interpolated_input():
    # A box over [0.75, 3.25]: the outermost hats reach into it by a triangle of 1/32.
    row = axis_matrix(box_taps(np.array([2.0]), 2.5, 5), 5)[:, 0]
    expected = np.array([1 / 32, 23 / 32, 1.0, 23 / 32, 1 / 32]) / 2.5
    np.testing.assert_allclose(row.numpy(), expected, atol=1e-6)


def test_box_taps_keep_a_ramp_wherever_the_boxes_lie():
    positions = np.linspace(5.0, 9.0, 23)
    for width in (1.6, 2.0, 3.7):
        values = np.arange(16.0) @ axis_matrix(box_taps(positions, width, 16), 16).numpy()
        np.testing.assert_allclose(values, positions, atol=1e-5)


def test_box_taps_ignore_what_lies_beyond_the_scan():
    row = axis_matrix(box_taps(np.array([0.0, -9.0]), 2.0, 3), 3)
    np.testing.assert_allclose(row[:, 0].numpy(), [2 / 3, 1 / 3, 0.0], atol=1e-6)
    np.testing.assert_allclose(row.numpy().sum(0), 1.0, atol=1e-6)
    assert row[0, 1] > 0.8


def test_averaging_starts_above_the_anti_alias_ratio():
    positions = np.array([3.0])
    assert resampling_taps(positions, 1.5, 9).index.shape == (1, 2)
    assert resampling_taps(positions, 1.51, 9).index.shape == (1, 4)


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.float32, np.float64, np.bool_, np.int64])
@pytest.mark.parametrize("memory_order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_plane_by_plane_path_equals_the_reference(dtype, memory_order):
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 2 if dtype is np.bool_ else 1000, (7, 9, 8)).astype(dtype)
    array = torch.from_numpy(stored).permute(memory_order)
    taps = [
        resampling_taps(np.linspace(0.3, n - 1.7, 5), ratio, n)
        for n, ratio in zip(array.shape, (0.7, 1.9, 3.2), strict=True)
    ]
    result = apply_taps(array, taps)
    assert result.is_contiguous()
    torch.testing.assert_close(result, apply_taps_axiswise(array, taps), rtol=1e-5, atol=1e-3)


def test_only_the_voxels_named_by_the_taps_are_read():
    array = torch.full((9, 9, 9), torch.nan)
    array[2:5, 2:5, 2:5] = 4.0
    taps = [linear_taps(np.array([2.2, 3.9]), 9)] * 3
    assert (apply_taps(array, taps) == 4.0).all()
