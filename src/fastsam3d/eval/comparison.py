"""Two evaluations of the same targets, compared target by target.

A difference is B less A. Targets are paired before anything is averaged, and both runs are redrawn
together, so that subjects who are hard for both do not widen the interval.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastsam3d.errors import DatasetError
from fastsam3d.eval.curves import arrange, figures
from fastsam3d.eval.evaluation import RESULTS_FILE, RUN_FILE
from fastsam3d.eval.outputs import model_name, read_json
from fastsam3d.eval.regions import FIRST_UNION
from fastsam3d.eval.results import read_rows
from fastsam3d.eval.statistics import Estimate, estimate, macro_with_bootstrap

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fastsam3d.eval.results import ResultRow, Target

# What may differ between two runs that measure the same thing: who answers, where files lie, and
# what chooses targets, which are compared themselves.
_FREE_OPTIONS = frozenset(
    {
        *("model", "device", "zero_image", "mirrors"),
        *("cases", "truth", "split", "limit", "regions"),
        *("protocol", "protocol.min_voxels", "protocol.max_targets"),
    }
)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One figure of both runs.

    Attributes:
        first: Macro mean of A over the paired targets; None where undefined.
        second: Of B.
        difference: B less A with its 95 % interval, over targets that have the figure in both.
    """

    first: float | None
    second: float | None
    difference: Estimate


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Differences of two runs.

    Attributes:
        names: Model of A and of B.
        num_targets: Targets compared.
        left_out: Targets of A and of B that the other lacks.
        overall: Per figure, named as by `fastsam3d.eval.curves.figures`.
        sources: The same per source.
        targets_by_source: Targets compared.
        is_oracle: Whether the protocol gives upper bounds only.
    """

    names: tuple[str, str]
    num_targets: int
    left_out: tuple[int, int]
    overall: dict[str, Difference]
    sources: dict[str, dict[str, Difference]]
    targets_by_source: dict[str, int]
    is_oracle: bool

    def to_json(self) -> dict[str, Any]:
        """Return the content for a JSON file."""
        return asdict(self)


def compare_runs(
    first_dir: Path, second_dir: Path, *, shared: bool = False, seed: int = 0
) -> Comparison:
    """Compare two output folders of ``fastsam3d evaluate``.

    Args:
        first_dir: A.
        second_dir: B.
        shared: Compare the targets that both have, in place of refusing others.
        seed: Of the bootstrap.

    Raises:
        DatasetError: A file is missing, or protocols, cases' contents or targets differ.
    """
    runs = read_json(first_dir / RUN_FILE), read_json(second_dir / RUN_FILE)
    _check_protocols(*runs)
    if runs[0]["hashes"]["cases"] != runs[1]["hashes"]["cases"] and not shared:
        raise DatasetError(
            f"{first_dir} and {second_dir} were run on different cases; add --shared to compare "
            "the targets that both have."
        )
    rows = read_rows(first_dir / RESULTS_FILE), read_rows(second_dir / RESULTS_FILE)
    kept, left_out = _paired(rows[0], rows[1])
    if any(left_out) and not shared:
        raise DatasetError(
            f"{first_dir} has {left_out[0]} targets that {second_dir} lacks, and {left_out[1]} the "
            "other way; finish both runs, or add --shared to compare the targets that both have."
        )
    return compare_rows(
        kept[0],
        kept[1],
        names=(model_name(runs[0]), model_name(runs[1])),
        left_out=left_out,
        is_oracle=bool(runs[0]["protocol"]["is_oracle"]),
        seed=seed,
    )


def compare_rows(
    first: Sequence[ResultRow],
    second: Sequence[ResultRow],
    *,
    names: tuple[str, str],
    left_out: tuple[int, int] = (0, 0),
    is_oracle: bool = False,
    seed: int = 0,
) -> Comparison:
    """Compare rows of the same targets.

    Args:
        first: Of A.
        second: Of B.
        names: Of A and B.
        left_out: For the record: targets that were not compared.
        is_oracle: For the record.
        seed: Of the bootstrap.

    Raises:
        DatasetError: Targets or rounds differ, or there are none.
    """
    order = sorted({row.target for row in first})
    if not order or order != sorted({row.target for row in second}):
        raise DatasetError("The two runs share no target, or have others; compare equal targets.")
    curves = [arrange(sorted(rows, key=lambda row: row.target)) for rows in (first, second)]
    if curves[0].rounds != curves[1].rounds:
        raise DatasetError(
            f"One run has rounds {curves[0].rounds} and the other {curves[1].rounds}; "
            "evaluate with the same number of clicks."
        )
    found = [figures(one) for one in curves]
    chosen = list(found[0])
    a, b = (np.column_stack([of[name] for name in chosen]) for of in found)
    both = np.isfinite(a) & np.isfinite(b)
    a, b = np.where(both, a, np.nan), np.where(both, b, np.nan)
    # Side by side, the draws of A, B and B less A are those of the same subjects.
    macro = macro_with_bootstrap(curves[0].places, np.column_stack([a, b, b - a]), seed=seed)
    sources = [place.source for place in curves[0].places]
    return Comparison(
        names=names,
        num_targets=len(order),
        left_out=left_out,
        overall=_differences(chosen, macro.macro, macro.draws),
        sources={
            source: _differences(chosen, means, macro.draws_by_source[source])
            for source, means in macro.by_source.items()
        },
        targets_by_source={source: sources.count(source) for source in macro.by_source},
        is_oracle=is_oracle,
    )


def _differences(names: list[str], means: Any, draws: Any) -> dict[str, Difference]:
    first, second, less = np.split(means, 3)
    spread = draws[:, 2 * len(names) :]
    return {
        name: Difference(
            first=_known(first[n]),
            second=_known(second[n]),
            difference=estimate(float(less[n]), spread[:, n]),
        )
        for n, name in enumerate(names)
    }


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _paired(
    first: Sequence[ResultRow], second: Sequence[ResultRow]
) -> tuple[tuple[list[ResultRow], list[ResultRow]], tuple[int, int]]:
    """Keep the rows of targets that both runs have; count the others."""
    targets = {_identity(row) for row in first}, {_identity(row) for row in second}
    common = targets[0] & targets[1]
    kept = tuple([row for row in rows if _identity(row) in common] for rows in (first, second))
    return (kept[0], kept[1]), (len(targets[0] - common), len(targets[1] - common))


def _identity(row: ResultRow) -> tuple[Target, str, float]:
    """Return what two runs must share: the number of a union says not which values it has."""
    if row.label < FIRST_UNION:
        return row.target, "", 0.0
    return row.target, row.structure, row.truth_ml


def _check_protocols(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Refuse runs whose options differ in anything but who answered and which targets there are."""
    a, b = (
        {**run["options"], **{f"protocol.{k}": v for k, v in run["options"]["protocol"].items()}}
        for run in (first, second)
    )
    for name in sorted((a.keys() | b.keys()) - _FREE_OPTIONS):
        if a.get(name) != b.get(name):
            raise DatasetError(
                f"The runs differ in {name.replace('.', ' ')}: {a.get(name)!r} and "
                f"{b.get(name)!r}; evaluate both alike."
            )
