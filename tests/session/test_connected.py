"""The parts of a mask that clicks belong to are those that scipy labels."""

import numpy as np
import pytest
from scipy import ndimage

from fastsam3d.session.connected import connected_to


def labelled(mask, seeds):
    labels = ndimage.label(mask)[0]
    return np.isin(labels, labels[tuple(seeds.T)])


@pytest.mark.parametrize("share", [0.02, 0.3, 0.35, 0.7, 1.0])
@pytest.mark.parametrize("shape", [(9, 12, 14), (1, 20, 5), (16, 1, 1), (3, 3, 1)])
def test_noise_has_the_parts_that_scipy_labels(share, shape):
    rng = np.random.default_rng(round(100 * share) + len(shape))
    for _ in range(5):
        mask = rng.random(shape) < share
        mask[0, 0, 0] = True
        seeds = rng.permutation(np.argwhere(mask))[: rng.integers(1, 4)]
        np.testing.assert_array_equal(connected_to(mask, seeds), labelled(mask, seeds))


def test_a_line_that_winds_through_the_box_is_one_part():
    mask = np.zeros((11, 11, 11), np.bool_)
    mask[::2, ::2] = True
    mask[::2, 1::4, -1] = mask[::2, 3::4, 0] = True
    mask[1::4, -1, -1] = mask[3::4, 0, 0] = True
    np.testing.assert_array_equal(connected_to(mask, np.array([[0, 0, 0]])), mask)


def test_voxels_that_share_an_edge_only_are_two_parts():
    mask = np.zeros((4, 4, 4), np.bool_)
    mask[1, 1, 1] = mask[1, 2, 2] = mask[2, 1, 2] = True
    assert connected_to(mask, np.array([[1, 2, 2]])).sum() == 1
