"""The page about ambiguity does what it says: its blocks run in their order."""

import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - as everybody calls it

from fastsam3d import Session, read_volume
from fastsam3d.io import write_volume
from tests.session.ambiguous_model import (
    CENTRE,
    HesitantModel,
    nested_session,
    nested_volume,
)

PAGE = Path(__file__).parent.parent.parent / "docs" / "how-to" / "ambiguity.md"


def test_every_block_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == PAGE.read_text().count("```python") >= 9
    monkeypatch.chdir(tmp_path)
    session = nested_session(HesitantModel())
    monkeypatch.setattr(Session, "from_pretrained", lambda *_, **__: session)
    flair, t1 = nested_volume(), nested_volume([(6.0, 1000)])
    write_volume(flair, "mr.nii.gz")
    write_volume(t1, "t1.nii.gz")
    images = [sitk.GetImageFromArray(channel.array.T) for channel in (flair, t1)]
    sitk.WriteImage(sitk.JoinSeries(images), "phases.nii.gz")

    names: dict = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"ambiguity.md, block {number}", "exec"), names)  # noqa: S102 - ours

    study = names["study"]
    assert study.mask(names["core"]).array[CENTRE] == 1
    assert names["suggestion"] is not None
    assert read_volume("doubt.nii.gz").array.max() == pytest.approx(1.0, abs=0.1)
    assert names["phases"].names == ("0", "1")
    printed = capsys.readouterr().out
    for words in ("answer", "part", "whole", "True", "stability 0.", "('core', 'T1')"):
        assert words in printed
    assert np.count_nonzero(names["part"].mask.array) < names["found"].probability.size
