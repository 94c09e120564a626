"""The real engine behind the real command, with random weights: files in, files out."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastsam3d.cli.main import main
from fastsam3d.io import read_mask, write_volume
from fastsam3d.volume import Geometry, Volume
from tests.cli.weights import write_toy_weights

SHAPE = (30, 26, 22)


@pytest.fixture
def geometry() -> Geometry:
    """An oblique, anisotropic, left-handed grid."""
    angle = np.deg2rad(20)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, -1]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn * (1.0, 1.25, 3.0)
    affine[:3, 3] = (-10, 20, 35)
    return Geometry(SHAPE, affine)


@pytest.mark.parametrize("space", ["voxel", "world"])
def test_a_click_gives_mask_preview_and_report(
    space: str, geometry: Geometry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = write_toy_weights(tmp_path / "toy.safetensors")
    image, mask_path, preview = (tmp_path / n for n in ("scan.nii.gz", "mask.nii.gz", "look.png"))
    ball = ((np.indices(SHAPE).transpose(1, 2, 3, 0) - (15, 13, 11)) ** 2).sum(axis=-1) < 36
    noise = np.random.default_rng(3).normal(0, 5, SHAPE)
    write_volume(Volume((100 * ball + noise).astype(np.float32), geometry), image)
    point = "15,13,11"
    words: list[str] = []
    if space == "world":
        point = ",".join(f"{mm:.4f}" for mm in geometry.voxel_to_world((15, 13, 11)))
        words = ["--space", "world", "--frame", "RAS"]

    words += ["--point", point, "-o", str(mask_path), "--preview", str(preview), "--json"]
    assert main(["segment", str(image), "--model", str(weights), "--device", "cpu", *words]) == 0
    report = json.loads(capsys.readouterr().out)
    mask = read_mask(mask_path)
    assert mask.geometry.is_close(geometry)
    assert report["voxels"] == np.count_nonzero(mask.array)
    assert report["volume_ml"] == pytest.approx(report["voxels"] * 3.75 / 1000, abs=1e-4)
    assert report["roi_spacing_mm"] > 0
    assert 0 <= report["predicted_quality"] <= 1
    assert report["encode_ms"] > 0
    assert report["click_ms"] > 0
    with Image.open(preview) as picture:
        picture.verify()


def test_a_point_outside_of_the_scan_writes_nothing(
    geometry: Geometry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = write_toy_weights(tmp_path / "toy.safetensors")
    image, mask_path = tmp_path / "scan.nii.gz", tmp_path / "mask.nii.gz"
    write_volume(Volume(np.zeros(SHAPE, dtype=np.int16), geometry), image)
    words = ["--model", str(weights), "--point", "99,1,1", "-o", str(mask_path)]

    assert main(["segment", str(image), *words]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "99" in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not mask_path.exists()
