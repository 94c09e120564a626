import numpy as np
import pytest

from fastsam3d.eval.boxed import BoxedMask, boxed_dice, boxed_labels, components
from fastsam3d.eval.metrics import dice
from fastsam3d.volume import Region

SHAPE = (9, 8, 7)
WHOLE = Region((0, 0, 0), SHAPE)


def _random(seed: int, share: float = 0.02) -> np.ndarray:
    return np.random.default_rng(seed).random(SHAPE) < share


@pytest.mark.parametrize("seed", range(5))
def test_a_boxed_mask_is_the_mask_in_the_tightest_box(seed: int) -> None:
    whole = _random(seed)
    mask = BoxedMask.of(SHAPE, WHOLE, whole)
    np.testing.assert_array_equal(mask.whole(), whole)
    assert mask.num_voxels == whole.sum()
    voxels = np.argwhere(whole)
    assert mask.region == Region(tuple(voxels.min(0)), tuple(voxels.max(0) + 1))
    part = Region((2, 1, 3), (7, 8, 6))
    np.testing.assert_array_equal(mask.crop(part), whole[part.slices])


def test_a_part_of_a_volume_keeps_its_place() -> None:
    array = np.zeros((3, 3, 3), np.uint8)
    array[1, 1, 2] = 7
    mask = BoxedMask.of(SHAPE, Region((4, 2, 3), (7, 5, 6)), array)
    assert np.argwhere(mask.whole()).tolist() == [[5, 3, 5]]
    nothing = BoxedMask.of(SHAPE, WHOLE, np.zeros(SHAPE))
    assert nothing.region.is_empty
    assert not nothing.whole().any()


@pytest.mark.parametrize("seed", range(5))
def test_dice_of_boxes_is_dice_of_volumes(seed: int) -> None:
    a, b = _random(seed, 0.3), _random(seed + 50, 0.01)
    boxed = [BoxedMask.of(SHAPE, WHOLE, mask) for mask in (a, b)]
    assert boxed_dice(*boxed) == pytest.approx(dice(a, b))
    nothing = BoxedMask.empty(SHAPE)
    assert boxed_dice(nothing, boxed[0]) == 0.0
    assert boxed_dice(nothing, nothing) == 1.0


def test_labels_become_masks_and_small_ones_are_left_out() -> None:
    labels = np.zeros(SHAPE, np.uint16)
    labels[1:4, 1:4, 1:4] = 3
    labels[6, 6, 5:7] = 300
    found = boxed_labels(labels, min_voxels=2)
    assert list(found) == [3, 300]
    for value, mask in found.items():
        np.testing.assert_array_equal(mask.whole(), labels == value)
    assert list(boxed_labels(labels, min_voxels=3)) == [3]


def test_components_are_26_connected_and_largest_first() -> None:
    whole = np.zeros(SHAPE, bool)
    whole[0:2, 0:2, 0:2] = True
    whole[2, 2, 2] = True  # touches by a corner
    whole[5:8, 5:8, 1:4] = True
    whole[8, 0, 6] = True
    parts = components(BoxedMask.of(SHAPE, WHOLE, whole), min_voxels=2)
    assert [part.num_voxels for part in parts] == [27, 9]
    assert parts[1].whole()[2, 2, 2]
    assert components(BoxedMask.empty(SHAPE), min_voxels=1) == []
