"""Means of means, and intervals over redrawn subjects."""

import numpy as np
import pytest

from fastsam3d.errors import DatasetError
from fastsam3d.eval.statistics import (
    Place,
    estimate,
    macro_with_bootstrap,
    nan_mean,
    rank_correlation,
    rounds_to_reach,
)


def places(*rows: tuple[str, str, str]) -> list[Place]:
    return [Place(source=s, structure=g, subject=p) for s, g, p in rows]


def test_a_large_source_or_structure_does_not_dominate() -> None:
    where = places(("a", "x", "1"), ("a", "x", "2"), ("a", "y", "1"), ("b", "x", "1"))
    found = macro_with_bootstrap(where, np.array([[0.0], [1.0], [1.0], [0.1]]), draws=3)

    assert found.by_structure["a"]["x"] == pytest.approx([0.5])
    assert found.by_source["a"] == pytest.approx([0.75])
    assert found.macro == pytest.approx([(0.75 + 0.1) / 2])


def test_the_spread_of_the_draws_is_that_of_a_mean_of_subjects() -> None:
    values = np.random.default_rng(0).normal(size=(400, 1))
    where = places(*(("a", "x", str(number)) for number in range(400)))
    found = macro_with_bootstrap(where, values, seed=1)

    assert found.draws.shape == (2000, 1)
    assert found.draws.std() == pytest.approx(values.std() / 20, rel=0.1)
    span = estimate(float(found.macro[0]), found.draws[:, 0])
    assert span.high - span.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_targets_of_one_subject_are_redrawn_together() -> None:
    # Fifty structures of two people: the interval is as wide as for two values, not for a hundred.
    where = places(*(("a", f"x{n}", person) for n in range(50) for person in ("1", "2")))
    values = np.array([[0.0], [1.0]] * 50)
    draws = macro_with_bootstrap(where, values).draws

    assert set(np.unique(draws)) == {0.0, 0.5, 1.0}
    assert (draws == 0.5).mean() == pytest.approx(0.5, abs=0.05)


def test_a_single_subject_has_an_interval_of_no_width() -> None:
    found = macro_with_bootstrap(places(("a", "x", "1"), ("a", "y", "1")), np.array([[0.2], [0.4]]))

    assert np.ptp(found.draws) == 0.0
    assert estimate(0.3, found.draws[:, 0]).low == pytest.approx(0.3)


def test_draws_repeat_with_their_seed_and_differ_without() -> None:
    where = places(*(("a", "x", str(number)) for number in range(9)))
    values = np.arange(9.0)[:, None]
    first = macro_with_bootstrap(where, values, seed=5, draws=300)

    np.testing.assert_array_equal(
        first.draws, macro_with_bootstrap(where, values, seed=5, draws=300).draws
    )
    assert not np.array_equal(
        first.draws, macro_with_bootstrap(where, values, seed=6, draws=300).draws
    )


def test_missing_figures_are_left_out_of_every_mean() -> None:
    where = places(("a", "x", "1"), ("a", "x", "2"), ("b", "x", "1"))
    found = macro_with_bootstrap(where, np.array([[np.nan], [0.4], [np.nan]]), draws=50)

    assert found.macro == pytest.approx([0.4])
    assert np.isnan(found.by_source["b"]).all()
    assert np.nanmax(found.draws) == pytest.approx(0.4)
    assert estimate(np.nan, found.draws[:, 0]).value is None
    np.testing.assert_array_equal(nan_mean(np.array([[np.nan, 1.0]]), axis=0), [np.nan, 1.0])


def test_unequal_numbers_are_refused() -> None:
    with pytest.raises(DatasetError, match="0 places and 0 targets"):
        macro_with_bootstrap([], np.zeros((0, 1)))
    with pytest.raises(DatasetError, match="1 places and 2 targets"):
        macro_with_bootstrap(places(("a", "x", "1")), np.zeros((2, 1)))


def test_rounds_are_counted_to_the_first_that_reaches() -> None:
    curves = np.array([[0.1, 0.8, 0.5], [0.9, 0.9, 0.9], [0.1, 0.2, 0.3]])

    assert rounds_to_reach(curves, 0.8).tolist() == [2, 1, 0]


def test_ranks_correlate_whatever_the_scale() -> None:
    rising = np.array([0.1, 0.2, 0.7, 0.9])

    assert rank_correlation(rising, rising**5) == pytest.approx(1.0)
    assert rank_correlation(rising, -rising) == pytest.approx(-1.0)
    assert rank_correlation(rising, np.ones(4)) is None
