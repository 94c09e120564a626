"""Means that no large group dominates, and what they would be with other subjects.

Targets are averaged to structures, structures to sources, sources to the macro mean. Intervals
redraw subjects within sources and keep each subject's targets together, because scans and
structures of one person are not independent. A source with a single subject adds no width: its
interval says nothing about other people.

NaN marks a figure that a target does not have; it is left out of every mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from fastsam3d.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

BOOTSTRAP_DRAWS = 2000
INTERVAL_PERCENT = (2.5, 97.5)
_DRAWS_AT_ONCE = 250  # bounds memory: draws x structures x figures


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a target belongs."""

    source: str
    structure: str
    subject: str


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean and its 95 % interval; None where no target has the figure."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Macro:
    """Means of several figures over all targets.

    Attributes:
        macro: float64 (figures,): mean over sources.
        by_source: The same per source: mean over its structures.
        by_structure: Per source and structure: mean over its targets.
        draws: float64 (draws, figures): `macro` of redrawn subjects.
        draws_by_source: The same per source.
    """

    macro: Floats
    by_source: dict[str, Floats]
    by_structure: dict[str, dict[str, Floats]]
    draws: Floats
    draws_by_source: dict[str, Floats]


def macro_with_bootstrap(
    places: Sequence[Place], values: Floats, *, seed: int = 0, draws: int = BOOTSTRAP_DRAWS
) -> Macro:
    """Average figures of targets and redraw the subjects.

    Args:
        places: Of every target.
        values: float64 (targets, figures), NaN where a target has no such figure.
        seed: Equal seeds give equal draws.
        draws: How often subjects are redrawn within their sources, with replacement.

    Raises:
        DatasetError: There are no targets, or their numbers differ.
    """
    if not len(places) == len(values) > 0:
        raise DatasetError(f"Got {len(places)} places and {len(values)} targets; give one each.")
    rng = np.random.default_rng(seed)
    by_source: dict[str, Floats] = {}
    by_structure: dict[str, dict[str, Floats]] = {}
    draws_by_source: dict[str, Floats] = {}
    for source in dict.fromkeys(place.source for place in places):
        own = np.array([place.source == source for place in places])
        sums = _Sums([place for place in places if place.source == source], values[own])
        structures = sums.structure_means(np.ones((1, sums.num_subjects)))[0]
        by_structure[source] = dict(zip(sums.structures, structures, strict=True))
        by_source[source] = nan_mean(structures, axis=0)
        drawn = [nan_mean(sums.structure_means(w), axis=1) for w in sums.weights(rng, draws)]
        draws_by_source[source] = np.concatenate(drawn)
    return Macro(
        macro=nan_mean(np.stack(list(by_source.values())), axis=0),
        by_source=by_source,
        by_structure=by_structure,
        draws=nan_mean(np.stack(list(draws_by_source.values())), axis=0),
        draws_by_source=draws_by_source,
    )


def estimate(value: float, draws: Floats) -> Estimate:
    """Return a mean with the 95 % percentile interval of its draws, float64 (draws,)."""
    finite = draws[np.isfinite(draws)]
    if not np.isfinite(value) or len(finite) == 0:
        return Estimate(value=None, low=None, high=None)
    low, high = np.percentile(finite, INTERVAL_PERCENT)
    return Estimate(value=float(value), low=float(low), high=float(high))


def nan_mean(values: Floats, *, axis: int) -> Floats:
    """Return the mean of the numbers along an axis; NaN where there are none."""
    known = np.isfinite(values)
    counts = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.where(counts > 0, total / np.maximum(counts, 1), np.nan)


def rounds_to_reach(curves: Floats, threshold: float) -> NDArray[np.int64]:
    """Return after how many rounds each curve first reaches a threshold; 0 if it never does.

    Args:
        curves: float64 (targets, rounds).
        threshold: Reached when equal or above.
    """
    reached = curves >= threshold
    return np.where(reached.any(axis=1), reached.argmax(axis=1) + 1, 0)


def rank_correlation(first: Floats, second: Floats) -> float | None:
    """Return Spearman's rank correlation; None where one side is constant or nothing is there."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    stats: Any = import_module("scipy.stats")  # heavy, hence late
    return float(stats.spearmanr(first, second).statistic)


class _Sums:
    """Sums and counts of one source per subject, structure and figure."""

    def __init__(self, places: Sequence[Place], values: Floats) -> None:
        self.structures = list(dict.fromkeys(place.structure for place in places))
        subjects = list(dict.fromkeys(place.subject for place in places))
        self.num_subjects = len(subjects)
        at = (
            [subjects.index(place.subject) for place in places],
            [self.structures.index(place.structure) for place in places],
        )
        shape = (len(subjects), len(self.structures), values.shape[1])
        known = np.isfinite(values)
        self._sums, self._counts = np.zeros(shape), np.zeros(shape)
        np.add.at(self._sums, at, np.where(known, values, 0.0))
        np.add.at(self._counts, at, known)

    def structure_means(self, weights: Floats) -> Floats:
        """Return (draws, structures, figures) for weights of subjects, (draws, subjects)."""
        sums = np.tensordot(weights, self._sums, axes=1)
        counts = np.tensordot(weights, self._counts, axes=1)
        return np.where(counts > 0, sums / np.maximum(counts, 1.0), np.nan)

    def weights(self, rng: np.random.Generator, draws: int) -> Iterator[Floats]:
        """Draw as many subjects as there are, with replacement, in batches of draws."""
        share = np.full(self.num_subjects, 1.0 / self.num_subjects)
        for start in range(0, draws, _DRAWS_AT_ONCE):
            size = min(_DRAWS_AT_ONCE, draws - start)
            yield rng.multinomial(self.num_subjects, share, size=size).astype(np.float64)
