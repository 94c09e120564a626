"""Half-open boxes of voxels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsam3d.errors import GeometryError
from fastsam3d.volume import Region

corners = st.tuples(*[st.integers(-5, 12)] * 3)
regions = st.builds(Region, corners, corners)
SHAPE = (8, 9, 10)


def voxels(region: Region) -> set[tuple[int, ...]]:
    return {
        (i, j, k)
        for i in range(region.start[0], region.stop[0])
        for j in range(region.start[1], region.stop[1])
        for k in range(region.start[2], region.stop[2])
    }


@given(regions)
def test_clip_keeps_exactly_the_voxels_inside(region: Region) -> None:
    clipped = region.clip(SHAPE)
    inside = {v for v in voxels(region) if all(0 <= x < n for x, n in zip(v, SHAPE, strict=True))}
    assert voxels(clipped) == inside
    assert clipped.is_empty == (not inside)
    if inside:
        assert np.zeros(SHAPE)[clipped.slices].shape == clipped.shape


@given(regions, regions)
def test_union_is_the_smallest_box_around_both(a: Region, b: Region) -> None:
    both = voxels(a) | voxels(b)
    union = a.union(b)
    assert voxels(union) >= both
    if both:
        assert union.start == tuple(np.min(list(both), axis=0))
        assert union.stop == tuple(np.max(list(both), axis=0) + 1)


@given(regions, regions)
def test_intersection_holds_the_common_voxels(a: Region, b: Region) -> None:
    assert voxels(a.intersection(b)) == voxels(a) & voxels(b)


@given(regions, corners)
def test_shift_moves_and_moves_back(region: Region, offset: tuple[int, int, int]) -> None:
    shifted = region.shift(offset)
    assert shifted.shape == region.shape
    assert shifted.shift([-x for x in offset]) == region


def test_regions_are_values_of_python_integers() -> None:
    region = Region(np.array([0, 1, 2]), np.array([3, 4, 5]))
    assert region == Region((0, 1, 2), (3, 4, 5))
    assert hash(region) == hash(Region((0, 1, 2), (3, 4, 5)))
    assert type(region.start[0]) is int


@pytest.mark.parametrize("start", [(0, 0), (0.5, 0, 0), (True, 0, 0), (0, 0, 0, 0)])
def test_corners_must_be_three_integers(start: tuple) -> None:
    with pytest.raises(GeometryError, match="Region start must be three integers"):
        Region(start, (1, 1, 1))


def test_slices_of_an_unclipped_region_are_refused() -> None:
    with pytest.raises(GeometryError, match="clip it first"):
        _ = Region((-1, 0, 0), (1, 1, 1)).slices
