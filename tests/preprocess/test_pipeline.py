"""The one road from a volume to a model's input."""

import numpy as np
import pytest
import torch

from fastsam3d.errors import ConfigError
from fastsam3d.preprocess.intensity import normalise
from fastsam3d.preprocess.pipeline import prepare_rois
from fastsam3d.preprocess.roi import Roi, cut_roi
from fastsam3d.volume import Geometry, Volume

METHOD = "roi_percentile_zscore"


def noise_volume(dtype=np.float32):
    array = np.random.default_rng(0).integers(0, 200, (30, 25, 20)).astype(dtype)
    return Volume(array, Geometry(array.shape, np.diag([1.0, -1.1, 2.0, 1.0])))


def test_a_batch_is_its_rois_cut_and_normalised_one_by_one():
    volume = noise_volume()
    rois = [Roi((12.0, 10.0, 9.0), mm, 32) for mm in (0.6, 1.2, 2.4)]
    batch = prepare_rois(volume, rois, normalisation=METHOD)
    assert batch.shape == (3, 1, 32, 32, 32)
    for one, roi in zip(batch, rois, strict=True):
        image, valid = cut_roi(volume.array, volume.geometry, roi)
        assert torch.equal(one[None], normalise(image, valid, method=METHOD))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint64, np.float16])
def test_the_type_in_which_a_file_stores_its_voxels_does_not_matter(dtype):
    roi = Roi((12.0, 10.0, 9.0), 1.2, 32)
    expected = prepare_rois(noise_volume(), [roi], normalisation=METHOD)
    result = prepare_rois(noise_volume(dtype), [roi], normalisation=METHOD)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("method", [METHOD, "foreground_zscore"])
@pytest.mark.parametrize("level", [0.1, 1234.5, -77.7, 6e4])
def test_a_constant_scan_is_exactly_zero_after_interpolation(method, level):
    array = np.full((20, 20, 20), level, np.float32)
    volume = Volume(array, Geometry(array.shape, np.diag([1.0, 1.0, 1.3, 1.0])))
    rois = [Roi((9.7, 9.1, 8.3), mm, 32) for mm in (0.37, 0.61, 2.9)]
    image = prepare_rois(volume, rois, normalisation=method)
    if method == METHOD:
        assert (image == 0).all()
    else:
        # The padding counts as zero there and may differ from the scan.
        assert (image[0] == 0).all()


def test_unknown_normalisations_are_refused():
    with pytest.raises(ConfigError, match="got 'window'"):
        prepare_rois(noise_volume(), [Roi((1.0, 1.0, 1.0), 1.0, 32)], normalisation="window")
