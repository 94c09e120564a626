"""The label maps of `docs/training/annotations` are those of its list of clicks."""

import json
from pathlib import Path

import numpy as np
import pytest

from fastsam3d import read_mask
from fastsam3d.data.licences import reason_to_drop_labels, reason_to_exclude

FOLDER = Path(__file__).parents[2] / "docs" / "training" / "annotations"
LISTED = json.loads((FOLDER / "clicks.json").read_text(encoding="utf-8"))


def test_every_case_has_its_map_and_every_map_its_case() -> None:
    assert {path.name for path in FOLDER.glob("*.nii.gz")} == {f"{case}.nii.gz" for case in LISTED}


@pytest.mark.parametrize("case", LISTED)
def test_every_object_is_in_the_map_and_its_clicks_lie_within_the_image(case: str) -> None:
    mask = read_mask(FOLDER / f"{case}.nii.gz")
    assert np.unique(mask.array).tolist() == list(range(len(LISTED[case]) + 1))
    for clicks in filter(None, LISTED[case].values()):  # no click: a label the scan came with
        assert clicks[0][3] == 1
        at = np.array(clicks)[:, :3]
        assert ((at >= 0) & (at < mask.array.shape)).all()


@pytest.mark.parametrize("case", LISTED)
def test_only_cases_that_may_be_trained_on_are_labelled(case: str) -> None:
    assert reason_to_exclude(case) is None
    assert reason_to_drop_labels(case) is None
