"""Sets of voxels in boxes behave as the sets of whole arrays would."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsam3d.session.object_mask import ObjectMask
from fastsam3d.volume import Region

SHAPE = (5, 4, 3)
WHOLE = Region((0, 0, 0), SHAPE)
arrays = st.binary(min_size=60, max_size=60).map(
    lambda b: np.frombuffer(b, np.uint8).reshape(SHAPE) < 60
)


def mask(array: np.ndarray) -> ObjectMask:
    return ObjectMask.cropped(WHOLE, array)


@settings(deadline=None)
@given(arrays, arrays)
def test_operations_are_those_of_sets(a: np.ndarray, b: np.ndarray) -> None:
    one, two = mask(a), mask(b)
    for made, expected in (
        (one, a),
        (one.union(two), a | b),
        (one.intersection(two), a & b),
        (one.difference(two), a & ~b),
    ):
        np.testing.assert_array_equal(made.to_array(SHAPE) > 0, expected)
        assert made.num_voxels == np.count_nonzero(expected)
        assert made.is_empty == (not expected.any())
    assert one.equals(two) == np.array_equal(a, b)
    np.testing.assert_array_equal(one.part(Region((1, 1, 0), (9, 3, 2)))[:4], a[1:, 1:3, :2])
    assert [one.holds((i, 1, 2)) for i in range(5)] == a[:, 1, 2].tolist()
    assert not one.holds((-1, 0, 0))


@given(arrays)
def test_packed_bits_are_exact(a: np.ndarray) -> None:
    one = mask(a)
    assert ObjectMask.unpacked(one.region, one.packed).equals(one)


def test_the_box_is_the_smallest() -> None:
    array = np.zeros(SHAPE, bool)
    array[2, 1, 0] = array[3, 1, 2] = True
    assert mask(array).region == Region((2, 1, 0), (4, 2, 3))
    assert not mask(array).array.flags.writeable


def test_taking_nothing_away_costs_nothing() -> None:
    array = np.zeros(SHAPE, bool)
    array[:2] = True
    one = mask(array)
    assert one.difference(ObjectMask.empty()) is one
    assert one.difference(mask(~array)) is one


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda b: b[:-3], "do not fill"),
        (lambda b: b"x" + b, "damaged"),
        (lambda b: b + b"x", "do not fill"),
        (lambda _: ObjectMask.cropped(WHOLE, np.ones(SHAPE)).packed, "do not fill"),
        (lambda _: b"", "do not fill"),
    ],
)
def test_damaged_bits_are_refused(spoil: object, words: str) -> None:
    part = mask(np.ones(SHAPE)).part(Region((0, 0, 0), (2, 2, 2)))
    small = ObjectMask.cropped(Region((0, 0, 0), (2, 2, 2)), part)
    with pytest.raises(ValueError, match=words):
        ObjectMask.unpacked(small.region, spoil(small.packed))
