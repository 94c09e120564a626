import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsam3d.errors import PromptError
from fastsam3d.prompts import simulate
from fastsam3d.prompts.simulate import challenge_click, depth_mm, first_click, next_click

ONE_MM = (1.0, 1.0, 1.0)


def _box(start: tuple[int, int, int], stop: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros((20, 20, 20), dtype=np.uint8)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = 1
    return mask


def test_the_first_click_is_the_middle_of_the_largest_part() -> None:
    truth = _box((1, 1, 1), (4, 4, 4)) | _box((8, 8, 8), (15, 15, 15))
    click = first_click(truth, ONE_MM)
    assert click.position == (11, 11, 11)
    assert click.positive


def test_depth_is_in_millimetres() -> None:
    # 9 voxels of 1 mm beside 3 slices of 6 mm: the plate is as thick as it is wide.
    truth = _box((2, 2, 4), (11, 11, 7))
    depth = depth_mm(truth > 0, (1.0, 1.0, 6.0))
    assert depth[6, 6, 5] == pytest.approx(5.0)
    assert depth[6, 6, 4] == pytest.approx(5.0)
    assert depth_mm(truth > 0, ONE_MM)[6, 6, 5] == pytest.approx(2.0)


def test_spacing_decides_where_the_middle_is() -> None:
    # A cube of 5 voxels joined by a bridge to a thin plate: thick slices make the plate deeper.
    truth = np.zeros((20, 20, 20), dtype=np.uint8)
    truth[1:6, 1:6, 1:6] = 1
    truth[6:9, 3, 3] = 1
    truth[9:18, 1:10, 3] = 1
    assert first_click(truth, ONE_MM).position == (3, 3, 3)
    assert first_click(truth, (1.0, 1.0, 6.0)).position == (13, 5, 3)


def test_missed_parts_get_a_positive_and_spilled_parts_a_negative_click() -> None:
    truth = _box((2, 2, 2), (9, 9, 9))
    missed = next_click(_box((2, 2, 2), (9, 9, 4)), truth, ONE_MM)
    assert missed is not None
    assert missed.positive
    assert truth[tuple(int(v) for v in missed.position)]
    spilled = next_click(truth | _box((9, 2, 2), (15, 9, 9)), truth, ONE_MM)
    assert spilled is not None
    assert not spilled.positive
    assert not truth[tuple(int(v) for v in spilled.position)]


def test_missed_and_spilled_voxels_that_touch_are_two_mistakes() -> None:
    truth = _box((2, 2, 2), (8, 8, 8))
    moved = _box((5, 2, 2), (12, 8, 8))
    click = next_click(moved, truth, ONE_MM)
    assert click is not None
    assert not click.positive
    assert click.position[0] >= 8


def test_corner_contact_makes_one_mistake_of_two() -> None:
    truth = (
        _box((2, 2, 2), (5, 5, 5)) | _box((5, 5, 5), (8, 8, 8)) | _box((12, 12, 12), (15, 15, 16))
    )
    click = next_click(np.zeros_like(truth), truth, ONE_MM)
    assert click is not None
    assert max(click.position) < 8


def test_a_perfect_mask_needs_no_click() -> None:
    truth = _box((2, 2, 2), (5, 5, 5))
    assert next_click(truth.copy(), truth, ONE_MM) is None


def test_an_object_at_the_border_is_clicked_inside_not_at_the_border() -> None:
    truth = _box((0, 0, 0), (7, 7, 7))
    assert first_click(truth, ONE_MM).position == (3, 3, 3)


@pytest.mark.parametrize("placement", ["jitter", "random"])
def test_drawn_clicks_stay_on_the_mistake_and_follow_the_seed(placement: str) -> None:
    truth = _box((3, 3, 3), (12, 10, 9))
    clicks = [
        first_click(truth, ONE_MM, placement=placement, rng=np.random.default_rng(seed))
        for seed in (1, 1, 2, 3, 4)
    ]
    assert clicks[0] == clicks[1]
    assert len({click.position for click in clicks}) > 1
    for click in clicks:
        assert truth[tuple(int(v) for v in click.position)]


def test_wrong_input_is_told_in_a_sentence() -> None:
    truth = _box((2, 2, 2), (5, 5, 5))
    with pytest.raises(PromptError, match="no voxel"):
        first_click(np.zeros_like(truth), ONE_MM)
    with pytest.raises(PromptError, match="one shape"):
        next_click(truth[:-1], truth, ONE_MM)
    with pytest.raises(PromptError, match="Spacing"):
        first_click(truth, (1.0, 0.0, 1.0))
    with pytest.raises(PromptError, match="rng"):
        first_click(truth, ONE_MM, placement="random")
    with pytest.raises(PromptError, match="Placement"):
        first_click(truth, ONE_MM, placement="corner")  # pyright: ignore[reportArgumentType]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([ONE_MM, (0.7, 0.7, 5.0), (2.0, 1.0, 1.0)]))
def test_all_backends_click_the_same_voxel(seed: int, spacing: simulate.Spacing) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.random((9, 8, 7)) < 0.45
    mask = rng.random((9, 8, 7)) < 0.3
    fast = next_click(mask, truth, spacing)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "edt", None)
        patch.setitem(sys.modules, "cc3d", None)
        plain = next_click(mask, truth, spacing)
    assert plain == fast


def test_uniform_clicks_fall_on_every_mistake_and_have_its_sign() -> None:
    truth = _box((2, 2, 2), (4, 4, 4)) | _box((12, 12, 12), (13, 13, 13))
    mask = _box((7, 7, 7), (9, 9, 9))
    rng = np.random.default_rng(0)
    found = {}
    for _ in range(200):
        click = next_click(mask, truth, ONE_MM, placement="uniform", rng=rng)
        assert click is not None
        found[tuple(int(v) for v in click.position)] = click.positive
    assert len(found) == 8 + 1 + 8
    assert all(positive == bool(truth[at]) for at, positive in found.items())
    assert next_click(truth, truth, ONE_MM, placement="uniform", rng=rng) is None


def published_click(mask: np.ndarray, truth: np.ndarray) -> tuple[tuple[int, ...], bool]:
    """The challenge's rule, step by step on arrays (D, H, W), with the libraries it names."""
    cc3d = pytest.importorskip("cc3d")
    ndimage = pytest.importorskip("scipy.ndimage")
    components = cc3d.connected_components((mask != truth).astype(np.uint8), connectivity=26)
    sizes = np.bincount(components.flat)
    sizes[0] = 0
    largest = components == np.argmax(sizes)
    voxels = np.argwhere(largest)
    low, high = voxels.min(axis=0), voxels.max(axis=0) + 1
    margin = np.maximum(((high - low) * 0.25).astype(int), 1)
    padded = np.pad(
        largest[tuple(map(slice, low, high))], [(side, side) for side in margin.tolist()]
    )
    depth = ndimage.distance_transform_edt(padded)
    deepest = np.argwhere(depth == depth.max()) - margin + low
    np.random.seed(42)  # noqa: NPY002 - the published draw
    at = tuple(int(v) for v in deepest[np.random.choice(len(deepest))])  # noqa: NPY002
    return at, bool(truth[at])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.3, 0.6]))
def test_the_challenge_click_is_that_of_the_published_rule(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.random((7, 9, 8)) < share
    mask = rng.random((7, 9, 8)) < share / 2
    click = challenge_click(mask.transpose(), truth.transpose())
    assert click is not None
    assert (click.position[::-1], click.positive) == published_click(mask, truth)


def test_the_challenge_click_joins_missed_and_spilled_voxels_that_touch() -> None:
    missed, spilled = _box((2, 2, 2), (4, 8, 6)), _box((4, 2, 2), (6, 8, 6))
    block = _box((12, 12, 12), (16, 16, 16))
    truth = missed | block
    # 48 + 48 voxels that touch are more than the block of 64, which is more than either alone.
    joined = challenge_click(spilled, truth)
    apart = next_click(spilled, truth, ONE_MM)
    assert joined is not None
    assert apart is not None
    assert max(joined.position) < 12
    assert min(apart.position) >= 12
    assert joined.positive == bool(truth[tuple(int(v) for v in joined.position)])
    assert challenge_click(truth, truth) is None
    with pytest.raises(PromptError, match="one shape"):
        challenge_click(truth[1:], truth)
