"""Packed masks count what unpacked ones would."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsam3d.session.object_mask import ObjectMask
from fastsam3d.session.packed_mask import PackedMask
from fastsam3d.volume import Region

SHAPE = (5, 6, 27)


def drawn(seed: int) -> ObjectMask:
    rng = np.random.default_rng(seed)
    low = rng.integers(0, np.array(SHAPE) - 1)
    high = low + 1 + rng.integers(0, np.array(SHAPE) - low)
    region = Region(low.tolist(), np.minimum(high, SHAPE).tolist())
    array = rng.random(region.shape) < 0.6
    array.flat[0] = True
    return ObjectMask.cropped(region, array)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_packing_changes_nothing(seed: int, other_seed: int) -> None:
    mask, other = drawn(seed), drawn(other_seed)
    a, b = PackedMask.of(mask), PackedMask.of(other)
    assert a.unpack().equals(mask)
    assert a.num_voxels == mask.num_voxels
    shared = mask.intersection(other).num_voxels
    assert a.count_shared(b) == b.count_shared(a) == shared
    assert a.iou(b) == pytest.approx(shared / mask.union(other).num_voxels)
    assert a.largest_iou(b) >= a.iou(b)
    assert a.union(b).unpack().equals(mask.union(other))
    assert a.count_within(other.region) == int(mask.part(other.region).sum())
    voxel = tuple(np.random.default_rng(seed).integers(0, SHAPE).tolist())
    assert a.holds(voxel) == mask.holds(voxel)
