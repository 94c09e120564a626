"""`fastsam3d info`: the facts of a file, for people and for programs."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its usual name

from fastsam3d.cli.main import main
from fastsam3d.io import write_mask
from fastsam3d.volume import Geometry, Mask


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.nii.gz"
    affine = np.diag([-0.5, 0.5, 5.0, 1.0])
    affine[:3, 3] = (10, -20, 30)
    array = np.zeros((6, 7, 8), dtype=np.uint8)
    array[1, 2, 3] = 9
    write_mask(Mask(array, Geometry(array.shape, affine)), path)
    return path


def test_json_holds_geometry_and_intensities(
    scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(scan), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)

    assert facts["shape"] == [6, 7, 8]
    assert facts["spacing_mm"] == [0.5, 0.5, 5.0]
    assert facts["origin_mm"] == [10.0, -20.0, 30.0]
    assert facts["orientation"] == "LAS"
    assert np.array(facts["affine"]).shape == (4, 4)
    assert facts["modality"] is None
    assert (facts["dtype"], facts["min"], facts["max"]) == ("uint8", 0.0, 9.0)


def test_people_get_one_fact_a_line(scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(scan)]) == 0
    lines = capsys.readouterr().out.splitlines()

    assert any(line.split() == ["orientation", "LAS"] for line in lines)


def test_a_time_point_of_a_4d_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = [sitk.GetImageFromArray(np.full((4, 3, 2), n, np.int16)) for n in range(3)]
    sitk.WriteImage(sitk.JoinSeries(frames), tmp_path / "cine.nrrd")

    assert main(["info", str(tmp_path / "cine.nrrd"), "--time", "1", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)

    assert (facts["shape"], facts["min"], facts["max"]) == ([2, 3, 4], 1.0, 1.0)


def test_a_missing_file_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tmp_path / "none.nii.gz")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "none.nii.gz" in captured.err
    assert len(captured.err.splitlines()) == 1
