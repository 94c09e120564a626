import numpy as np
import pytest

from fastsam3d.data import shrink


def test_fine_axes_are_averaged_and_coarse_ones_kept() -> None:
    factors = shrink.shrink_factors((40, 40, 10), (0.6, 0.6, 5.0), 1.2)
    assert factors == (2.0, 2.0, 1.0)


def test_averaging_keeps_the_mean_for_fractional_factors() -> None:
    image = np.random.default_rng(0).normal(size=(12, 10, 4))
    small = shrink.average_down(image, (1.2, 2.5, 1.0))
    assert small.shape == (10, 4, 4)
    assert small.mean() == pytest.approx(image.mean(), abs=1e-6)


def test_labels_follow_the_majority_on_the_grid_of_the_image() -> None:
    labels = np.zeros((8, 8, 8), dtype=np.uint8)
    labels[:4] = 9
    labels[0, 0, 0] = 0
    small = shrink.majority_down(labels, (2.0, 2.0, 2.0))
    assert small.shape == (4, 4, 4)
    np.testing.assert_array_equal(small[:, 3, 3], [9, 9, 0, 0])
    assert small[0, 0, 0] == 9


def test_soft_tissue_keeps_fine_hounsfield_steps() -> None:
    levels = shrink.ct_levels(1600.0)
    tissue = np.linspace(-190, 290, 999).astype(np.float32).reshape(9, 111, 1)
    error = np.abs(levels[shrink.quantise(tissue, levels)] - tissue)
    assert error.max() <= 1.65


def test_intensities_beyond_the_window_take_its_ends() -> None:
    levels = shrink.linear_levels(10.0, 20.0, 100)
    assert levels.shape == (256,)
    codes = shrink.quantise(np.array([[[-5.0, 10.0, 20.0, 900.0]]], dtype=np.float32), levels)
    np.testing.assert_allclose(levels[codes].ravel(), [10, 10, 20, 20])


def test_otsu_parts_dark_from_bright() -> None:
    rng = np.random.default_rng(0)
    image = np.concatenate([rng.normal(5, 1, 900), rng.normal(50, 3, 400)]).astype(np.float32)
    assert 8 < shrink.otsu_threshold(image) < 42
