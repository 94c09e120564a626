"""A result row whose fields are of no importance, to be changed one by one."""

from typing import Any

from fastsam3d.eval.results import ResultRow


def make_row(**changes: Any) -> ResultRow:
    fields: dict[str, Any] = {
        "case": "a__1",
        "subject": "1",
        "source": "a",
        "label": 1,
        "component": 0,
        "structure": "liver",
        "seed": 0,
        "round": 1,
        "prompt": "point",
        "position": (1, 2, 3),
        "positive": True,
        "dice": 0.5,
        "nsd_1mm": 0.25,
        "nsd_2mm": 0.5,
        "hd95_mm": 3.0,
        "truth_ml": 1.0,
        "mask_ml": 0.5,
        "encode_ms": 100.0,
        "click_ms": 10.0,
        "spacing_mm": 1.5,
        "quality": 0.5,
    }
    return ResultRow(**{**fields, **changes})
