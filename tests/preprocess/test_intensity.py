"""Normalisations: the exact arithmetic, padding, degenerate scans, batches."""

import numpy as np
import pytest
import torch

from fastsam3d.errors import ConfigError
from fastsam3d.preprocess.intensity import (
    NORMALISATIONS,
    foreground_zscore,
    normalise,
    roi_percentile_zscore,
)

SIZE = 32


def random_rois(batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn((batch, 1, SIZE, SIZE, SIZE), generator=generator) * 50 + 100
    return image, torch.ones_like(image, dtype=torch.bool)


def test_percentile_zscore_follows_its_definition():
    image, valid = random_rois()
    valid[..., :10] = False
    result = roi_percentile_zscore(image, valid)
    coarse = image[0, 0, 2::4, 2::4, 2::4].numpy()[valid[0, 0, 2::4, 2::4, 2::4].numpy()]
    low, high = np.percentile(coarse, [0.5, 99.5])
    clipped = np.clip(coarse, low, high)
    expected = (np.clip(image.numpy(), low, high) - clipped.mean()) / clipped.std()
    expected[~valid.numpy()] = (low - clipped.mean()) / clipped.std()
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-4)


def test_percentile_zscore_does_not_see_padding():
    image, valid = random_rois()
    valid[:, :, :8] = False
    padded = torch.where(valid, image, 1e6)
    assert torch.equal(roi_percentile_zscore(image, valid), roi_percentile_zscore(padded, valid))


def test_percentile_zscore_ignores_scale_and_offset_of_the_scanner():
    image, valid = random_rois()
    torch.testing.assert_close(
        roi_percentile_zscore(image * 7.5 - 900, valid),
        roi_percentile_zscore(image, valid),
        atol=1e-4,
        rtol=1e-4,
    )


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_a_scan_of_one_slice_is_still_normalised(axis):
    image, _ = random_rois()
    valid = torch.zeros_like(image, dtype=torch.bool)
    valid.select(axis, SIZE // 2).fill_(True)
    inside = roi_percentile_zscore(image, valid)[valid]
    assert abs(inside.mean()) < 0.3
    assert 0.7 < inside.std() < 1.3


def test_foreground_zscore_follows_its_definition():
    image, valid = random_rois()
    image -= 80
    valid[:, :, :, :5] = False
    zeroed = torch.where(valid, image, 0.0)
    foreground = zeroed[zeroed > 0]
    expected = (zeroed - foreground.mean()) / foreground.std()
    torch.testing.assert_close(foreground_zscore(image, valid), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", NORMALISATIONS)
@pytest.mark.parametrize("value", [0.0, 7.0, -1000.0, 1e30, -1e30])
def test_constant_rois_become_zeros(method, value):
    image = torch.full((1, 1, SIZE, SIZE, SIZE), value)
    result = normalise(image, torch.ones_like(image, dtype=torch.bool), method=method)
    assert (result == 0).all()


@pytest.mark.parametrize("method", NORMALISATIONS)
def test_rounding_noise_is_not_blown_up(method):
    image, valid = random_rois()
    noise = 1000 + (image - 100) * 2e-5  # deviation 1e-3 of 1000: what interpolation leaves
    assert (normalise(noise, valid, method=method) == 0).all()
    assert normalise(1000 + (image - 100) * 2e-3, valid, method=method).std() > 0.5


@pytest.mark.parametrize("method", NORMALISATIONS)
def test_an_roi_outside_of_the_scan_becomes_zeros(method):
    image, valid = random_rois()
    assert (normalise(image, ~valid, method=method) == 0).all()


@pytest.mark.parametrize("method", NORMALISATIONS)
def test_extreme_intensities_stay_finite(method):
    image, valid = random_rois()
    image[0, 0, ::2] = torch.inf
    image[0, 0, 1] = -torch.inf
    assert normalise(image, valid, method=method).isfinite().all()


@pytest.mark.parametrize("method", NORMALISATIONS)
def test_a_batch_equals_its_items_one_by_one(method):
    image, valid = random_rois(batch=3)
    valid[1, :, :20] = False
    valid[2] = False
    batched = normalise(image, valid, method=method)
    for n in range(3):
        one = normalise(image[n : n + 1], valid[n : n + 1], method=method)
        torch.testing.assert_close(batched[n : n + 1], one, atol=1e-5, rtol=1e-5)


def test_an_unknown_method_lists_the_known_ones():
    image, valid = random_rois()
    with pytest.raises(ConfigError, match="roi_percentile_zscore, foreground_zscore"):
        normalise(image, valid, method="minmax")
