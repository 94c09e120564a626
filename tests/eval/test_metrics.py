"""Figures of masks: shapes whose answer is known, and agreement with surface-distance."""

import math

import numpy as np
import pytest
import surface_distance as reference
from scipy import ndimage

from fastsam3d.errors import DatasetError
from fastsam3d.eval.metrics import (
    MaskScorer,
    Scores,
    challenge_nsd,
    dice,
    trapezoid_area,
    volume_ml,
)
from fastsam3d.eval.surface import cell_areas, neighbour_codes, surface_of

PERFECT = Scores(dice=1.0, nsd_1mm=1.0, nsd_2mm=1.0, hd95_mm=0.0)


def box(shape: tuple[int, int, int], *sides: slice) -> np.ndarray:
    mask = np.zeros(shape, dtype=np.uint8)
    mask[sides] = 1
    return mask


def ball(radius_mm: float, spacing: tuple[float, float, float], *, side_mm: float) -> np.ndarray:
    axes = [np.arange(0, side_mm, mm) - side_mm / 2 for mm in spacing]
    squared = sum(x**2 for x in np.meshgrid(*axes, indexing="ij"))
    return squared <= radius_mm**2


def blob(rng: np.random.Generator, shape: np.ndarray) -> np.ndarray:
    """A smooth random shape that may touch the border and fall into parts."""
    field = ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0.5, 2.5))
    return field > np.quantile(field, rng.uniform(0.5, 0.97))


def test_a_perfect_mask_scores_one_and_an_empty_one_zero() -> None:
    truth = box((9, 9, 9), slice(2, 7), slice(0, 9), slice(3, 4))
    scorer = MaskScorer(truth, (1.0, 0.5, 3.0))

    assert scorer.score(truth) == PERFECT
    assert scorer.score(truth * 200) == PERFECT
    empty = Scores(dice=0.0, nsd_1mm=0.0, nsd_2mm=0.0, hd95_mm=None)
    assert scorer.score(np.zeros_like(truth)) == empty


def test_an_absent_structure_is_matched_by_an_empty_mask_only() -> None:
    scorer = MaskScorer(np.zeros((4, 4, 4)), (1.0, 1.0, 1.0))
    something = box((4, 4, 4), slice(1, 2), slice(1, 2), slice(1, 2))

    assert scorer.score(np.zeros((4, 4, 4))) == PERFECT
    assert scorer.score(something) == Scores(dice=0.0, nsd_1mm=0.0, nsd_2mm=0.0, hd95_mm=None)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 1.0, 2.0)])
def test_a_shift_by_one_voxel_is_what_arithmetic_says(spacing: tuple[float, float, float]) -> None:
    truth = box((30, 30, 30), slice(5, 25), slice(5, 25), slice(5, 25))
    scores = MaskScorer(truth, spacing).score(np.roll(truth, 1, axis=0))

    assert scores.dice == pytest.approx(19 / 20)
    assert scores.hd95_mm == pytest.approx(spacing[0])
    # The two end faces move by one voxel; the rest of the surface is shared.
    i, j, k = spacing
    faces = 2 * 400 * np.array([j * k, i * k, i * j])
    assert scores.nsd_2mm == pytest.approx(
        1.0 if i <= 2 else (faces[1] + faces[2]) / faces.sum(), abs=0.03
    )


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 0.8, 1.5)])
def test_concentric_balls_are_as_far_apart_as_their_radii(
    spacing: tuple[float, float, float],
) -> None:
    truth, wider = (ball(radius, spacing, side_mm=40.0) for radius in (12.0, 15.0))
    scores = MaskScorer(truth, spacing).score(wider)

    assert scores.hd95_mm == pytest.approx(3.0, abs=max(spacing) / 2)
    assert scores.dice == pytest.approx(2 * 12**3 / (12**3 + 15**3), abs=0.02)
    assert scores.nsd_1mm < 0.05
    assert MaskScorer(truth, spacing).score(ball(13, spacing, side_mm=40.0)).nsd_2mm > 0.95


def test_a_ball_and_a_box_have_the_area_of_a_ball_and_a_box() -> None:
    areas = surface_of(ball(12.0, (0.7, 0.7, 1.0), side_mm=30.0), (0.7, 0.7, 1.0)).areas
    # Triangles between voxel middles follow the steps of the grid, hence a little more area.
    assert areas.sum() == pytest.approx(4 * math.pi * 12**2, rel=0.12)
    faces = surface_of(np.ones((40, 40, 40), dtype=bool), (1.0, 1.0, 1.0)).areas
    assert faces.sum() == pytest.approx(6 * 40**2, rel=0.05)


def test_every_mixed_cell_has_an_area_and_complements_share_it() -> None:
    areas = cell_areas((0.7, 1.1, 2.0))

    assert areas[0] == areas[255] == 0
    assert (areas[1:255] > 0).all()
    np.testing.assert_array_equal(areas, areas[::-1])


def test_codes_name_the_corners_that_are_inside() -> None:
    codes = neighbour_codes(box((2, 2, 2), slice(0, 1), slice(1, 2), slice(0, 1)) > 0)

    assert codes.shape == (3, 3, 3)
    # The voxel (0, 1, 0) is corner (1, 1, 1) of the cell that starts before it, and so on.
    assert codes[0, 1, 0] == 1 << 7
    assert codes[1, 2, 1] == 1 << 0
    assert codes[1, 1, 0] == 1 << 3


def test_far_from_the_truth_the_percentile_is_still_exact() -> None:
    rng = np.random.default_rng(3)
    truth = box((70, 60, 50), slice(3, 9), slice(3, 9), slice(3, 9))
    flood = blob(rng, np.array(truth.shape))
    flood[:16, :16, :16] = False
    spacing = (1.5, 0.7, 2.0)
    found, wanted = surface_of(flood, spacing), surface_of(truth > 0, spacing)
    elsewhere = np.ones([side + 1 for side in truth.shape], dtype=bool)
    elsewhere[tuple(wanted.cells.T)] = False
    away = ndimage.distance_transform_edt(elsewhere, sampling=spacing)
    distances = away[tuple(found.cells.T)]
    order = np.argsort(distances)
    share = np.cumsum(found.areas[order]) / found.areas.sum()
    expected = distances[order][np.searchsorted(share, 0.95)]

    assert MaskScorer(truth, spacing).score(flood).hd95_mm == pytest.approx(expected, abs=1e-9)


@pytest.mark.filterwarnings("ignore:.*ndimage:DeprecationWarning")
def test_fifty_random_pairs_agree_with_surface_distance() -> None:
    rng = np.random.default_rng(0)
    for number in range(50):
        shape = rng.integers(8, 22, 3)
        truth = blob(rng, shape)
        moved = np.roll(truth, rng.integers(-2, 3, 3), axis=(0, 1, 2))
        mask = blob(rng, shape) if number % 2 else moved
        i, j, k = (float(mm) for mm in rng.uniform(0.3, 5.0, 3).round(1))
        surfaces = reference.compute_surface_distances(truth, mask, (i, j, k))
        scores = MaskScorer(truth, (i, j, k)).score(mask)

        assert scores.dice == pytest.approx(
            reference.compute_dice_coefficient(truth, mask), abs=1e-6
        )
        assert scores.nsd_1mm == pytest.approx(
            reference.compute_surface_dice_at_tolerance(surfaces, 1.0), abs=1e-6
        )
        assert scores.nsd_2mm == pytest.approx(
            reference.compute_surface_dice_at_tolerance(surfaces, 2.0), abs=1e-6
        )
        assert scores.hd95_mm == pytest.approx(
            reference.compute_robust_hausdorff(surfaces, 95.0), abs=1e-6
        )


def test_the_challenge_counts_surfaces_only_above_a_fifth_of_overlap() -> None:
    assert challenge_nsd(0.2, 0.9) == 0.0
    assert challenge_nsd(0.21, 0.9) == 0.9


def test_the_area_of_five_clicks_is_four_at_most() -> None:
    assert trapezoid_area([1.0] * 5) == 4.0
    assert trapezoid_area([0.0, 0.5, 1.0]) == pytest.approx(0.25 + 0.75)
    with pytest.raises(DatasetError, match="at least two rounds, got 1"):
        trapezoid_area([0.7])


def test_masks_of_other_grids_are_refused() -> None:
    with pytest.raises(DatasetError, match="one grid"):
        MaskScorer(np.ones((3, 3, 3)), (1.0, 1.0, 1.0)).score(np.ones((3, 3, 4)))
    with pytest.raises(DatasetError, match="one grid"):
        dice(np.ones((3, 3, 3)), np.ones((3, 3, 4)))
    with pytest.raises(DatasetError, match="positive spacing"):
        MaskScorer(np.ones((3, 3, 3)), (1.0, 0.0, 1.0))
    with pytest.raises(DatasetError, match="3-D"):
        MaskScorer(np.ones((3, 3)), (1.0, 1.0, 1.0))


def test_dice_and_volume() -> None:
    mask = box((10, 10, 10), slice(0, 4), slice(0, 5), slice(0, 5))
    half = box((10, 10, 10), slice(0, 2), slice(0, 5), slice(0, 5))

    assert dice(half, mask) == pytest.approx(2 * 50 / 150)
    assert dice(np.zeros((2, 2, 2)), np.zeros((2, 2, 2))) == 1.0
    assert volume_ml(mask, (1.0, 2.0, 5.0)) == pytest.approx(1.0)
