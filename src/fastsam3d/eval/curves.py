"""Rows of results arranged by target and round, as the figures need them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastsam3d.errors import DatasetError
from fastsam3d.eval.metrics import trapezoid_area
from fastsam3d.eval.statistics import Place, rounds_to_reach

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fastsam3d.eval.results import ResultRow, Target
    from fastsam3d.eval.statistics import Floats

BOX_ROUND = 0
REPORTED_ROUNDS = (1, 3, 5, 10)
SCORES = ("dice", "nsd_1mm", "nsd_2mm", "hd95_mm")
NOC_THRESHOLDS = (0.80, 0.85, 0.90)
NOC_CAP = 20
FAILURE_DICE = 0.5
WORSE_BY = 0.01


@dataclass(frozen=True, kw_only=True, eq=False)
class Curves:
    """All targets of an evaluation.

    Attributes:
        targets: Case, label, component and seed of each.
        places: Source, structure and subject of each.
        rounds: Which rounds there are, ascending; 0 is the round after a box.
        scores: Per name of `SCORES`, float64 (targets, rounds); NaN where undefined.
        prompted: Whether the round gave a prompt, bool (targets, rounds).
    """

    targets: list[Target]
    places: list[Place]
    rounds: list[int]
    scores: dict[str, Floats]
    prompted: NDArray[np.bool_]

    @property
    def num_clicks(self) -> int:
        """Rounds that clicked; the round of the box is none of them."""
        return sum(number != BOX_ROUND for number in self.rounds)

    @property
    def clicked(self) -> slice:
        """The columns of those rounds."""
        return slice(len(self.rounds) - self.num_clicks, None)


def arrange(rows: Sequence[ResultRow]) -> Curves:
    """Sort rows into targets and rounds.

    Raises:
        DatasetError: There are no rows, or targets differ in their rounds.
    """
    found: dict[Target, dict[int, ResultRow]] = {}
    for row in rows:
        found.setdefault(row.target, {})[row.round] = row
    kinds = {tuple(sorted(of)) for of in found.values()}
    if len(kinds) != 1:
        shown = sorted(str(list(kind)) for kind in kinds)
        raise DatasetError(
            f"Targets need one common number of clicks, got rounds {' and '.join(shown)}."
            if kinds
            else "There are no rows to summarise; run the evaluation first."
        )
    rounds = list(kinds.pop())
    table = [[of[number] for number in rounds] for of in found.values()]
    first = [of[0] for of in table]
    return Curves(
        targets=list(found),
        places=[Place(source=r.source, structure=r.structure, subject=r.subject) for r in first],
        rounds=rounds,
        scores={
            name: np.array([[_number(getattr(r, name)) for r in of] for of in table])
            for name in SCORES
        },
        prompted=np.array([[r.prompt != "none" for r in of] for of in table]),
    )


def figures(curves: Curves) -> dict[str, Floats]:
    """Return one number per target for every figure, each float64 (targets,).

    - ``dice@3`` (and ``nsd_1mm``, ``nsd_2mm``, ``hd95_mm``): after click 3, for the clicks of
      `REPORTED_ROUNDS` that exist and the last; ``dice@box``: after a box.
    - ``auc_dice``, ``auc_nsd_2mm``: area under the clicks by trapezoid, at most clicks - 1.
    - ``noc80``, ``noc85``, ``noc90``: clicks until Dice reaches .80 and so on; targets that never
      do count with the number of clicks made, 20 at most.
    - ``noc80_failed`` and so on: 1 for such targets, else 0.
    - ``below_half``: 1 for targets whose last Dice is below .5, else 0.
    """
    result: dict[str, Floats] = {}
    last = curves.rounds[-1]
    for column, number in enumerate(curves.rounds):
        if number in {*REPORTED_ROUNDS, BOX_ROUND, last}:
            label = "box" if number == BOX_ROUND else str(number)
            result |= {f"{name}@{label}": curves.scores[name][:, column] for name in SCORES}
    clicked = {name: curves.scores[name][:, curves.clicked] for name in ("dice", "nsd_2mm")}
    if curves.num_clicks >= 2:
        for name, of in clicked.items():
            result[f"auc_{name}"] = np.array([trapezoid_area(list(curve)) for curve in of])
    if curves.num_clicks >= 1:
        cap = min(NOC_CAP, curves.num_clicks)
        for threshold in NOC_THRESHOLDS:
            needed = rounds_to_reach(clicked["dice"][:, :cap], threshold)
            name = f"noc{threshold * 100:.0f}"
            result[name] = np.where(needed == 0, cap, needed).astype(np.float64)
            result[f"{name}_failed"] = (needed == 0).astype(np.float64)
    result["below_half"] = (curves.scores["dice"][:, -1] < FAILURE_DICE).astype(np.float64)
    return result


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)
