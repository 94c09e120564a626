"""The page about sessions does what it says: its blocks run in their order."""

import re
from pathlib import Path

import numpy as np
import pytest

from fastsam3d import Session, read_mask
from fastsam3d.io import write_volume
from fastsam3d.session import Predictor, ScalePolicy
from fastsam3d.volume import Geometry, Volume
from tests.session.phantoms import BrightModel

PAGE = Path(__file__).parent.parent.parent / "docs" / "session.md"
# The structures that the page points at: centre and radius, voxels of 1 mm.
BALLS = [((24, 24, 30), 8.0), ((44, 44, 30), 4.0), ((44, 20, 30), 4.0)]


def phantom() -> Volume:
    geometry = Geometry((60, 60, 60), np.eye(4))
    index = np.moveaxis(np.indices(geometry.shape), 0, -1)
    distance = np.min([np.linalg.norm(index - at, axis=-1) - r for at, r in BALLS], axis=0)
    return Volume((1000 / (1 + np.exp(distance / 0.5))).astype(np.int16), geometry)


def test_every_block_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == PAGE.read_text().count("```python") >= 9
    monkeypatch.chdir(tmp_path)
    policy = ScalePolicy(spacings_mm=(1.5,), max_refinements=0)
    session = Session(Predictor(BrightModel()), policy=policy)
    monkeypatch.setattr(Session, "from_pretrained", lambda *_, **__: session)
    write_volume(phantom(), "ct.nii.gz")

    names: dict = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"session.md, block {number}", "exec"), names)  # noqa: S102 - ours

    study, liver, spots = names["study"], names["liver"], names["spots"]
    assert study.mask(liver).array[24, 24, 30] == 1
    assert study.mask(spots).array[44, 44, 30] == 1
    assert study.mask(spots).array[44, 20, 30] == 0
    assert [item.name for item in study.objects] == ["spots", "liver", "second spot"]
    np.testing.assert_array_equal(read_mask("labels.nii.gz").array, study.label_map().array)
    assert {file.name for file in tmp_path.iterdir()} == {
        "ct.nii.gz", "ct.study", "backup.study", "ct.seg.nrrd", "labels.nii.gz",
        "labels.labels.json",
    }  # fmt: skip
    assert "ml," in capsys.readouterr().out
