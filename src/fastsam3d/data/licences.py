"""Which training cases are left out because the licence of the data does not hold.

A repository's licence covers its code; where its data come with their own terms, those count.
The full table with reasons is docs/training/data.md.
"""

from __future__ import annotations

EXCLUDED_CASES: dict[str, str] = {
    "niivue__chris_MRA": "CC BY-NC 4.0 according to the README of the image repository",
    "niivue__chris_t1": "CC BY-NC 4.0 according to the README of the image repository",
    "niivue__chris_PD": "CC BY-NC 4.0 according to the README of the image repository",
    "niivue__MR_Gd": "from a figshare record whose licence we could not verify",
    "fnndsc__fetal_template_T2": "from the Imperial College fetal atlas, terms not verifiable",
    "mricron__inia19": "terms of the INIA19/NeuroMaps atlas not verifiable",
    "medsam2": "the card of the lesion masks states no licence; DeepLesion terms not verifiable",
}
EXCLUDED_LABELS: dict[str, str] = {
    "mricron__ch2_aal": "terms of the AAL labels not verifiable; the Colin27 image is kept",
}


def reason_to_exclude(case: str) -> str | None:
    """Return why a case, or its whole source, must not enter a training pack; None if it may."""
    return EXCLUDED_CASES.get(case) or EXCLUDED_CASES.get(case.split("__", maxsplit=1)[0])


def reason_to_drop_labels(case: str) -> str | None:
    """Return why only the labels of a case are left out; None if they may be used."""
    return EXCLUDED_LABELS.get(case)
