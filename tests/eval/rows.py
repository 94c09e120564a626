"""Result rows with chosen figures."""

import zlib
from dataclasses import replace
from typing import Any

from fastsam3d.eval.results import ResultRow


def curve(case: str, structure: str, *dice: float, **changes: Any) -> list[ResultRow]:
    """Rows of one target after clicks 1, 2, ...; the surface figures follow Dice."""
    first = int(changes.pop("first_round", 1))
    rows = [
        ResultRow(
            case=case,
            subject=case,
            source=case.split("__", maxsplit=1)[0],
            label=zlib.crc32(structure.encode()) % 1000,
            component=0,
            structure=structure,
            seed=0,
            round=number,
            prompt="box" if number == 0 else "point",
            position=None if number == 0 else (1, 2, 3),
            positive=None if number == 0 else True,
            dice=value,
            nsd_1mm=value / 2,
            nsd_2mm=value,
            hd95_mm=10 * (1 - value) if value > 0 else None,
            truth_ml=2.0,
            mask_ml=2.0 * value,
            encode_ms=100.0 if number == first else 0.0,
            click_ms=10.0 * (number + 1),
            spacing_mm=1.5,
            quality=value / 2,
        )
        for number, value in enumerate(dice, start=first)
    ]
    return [replace(row, **changes) for row in rows]
