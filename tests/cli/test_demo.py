"""The demo finds its scan among nilearn's own files and says what it did."""

import sys
from pathlib import Path

import numpy as np
import pytest

from fastsam3d.cli.demo import CLICK, find_brain
from fastsam3d.cli.main import main
from fastsam3d.cli.segment import OutputOptions
from fastsam3d.cli.usage import PromptOptions
from fastsam3d.io import read_volume


def test_the_click_lies_in_the_dark_fluid_of_the_ventricle() -> None:
    volume = read_volume(find_brain())
    i, j, k = (int(index) for index in CLICK.split(","))

    around = volume.array[i - 1 : i + 2, j - 1 : j + 2, k - 1 : k + 2]
    assert around.max() < np.median(volume.array[volume.array > 0])


def test_without_nilearn_the_demo_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fastsam3d.cli.demo.find_spec", lambda _: None)

    assert main(["demo", "--output-dir", str(tmp_path / "out")]) == 1
    assert "pip install 'fastsam3d[demo]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_demo_is_one_segment_call(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, object] = {}

    def fake_segment(image: Path, **options: object) -> None:
        seen.update(options, image=image)

    monkeypatch.setattr("fastsam3d.cli.demo.segment", fake_segment)

    assert main(["demo", "--output-dir", str(tmp_path / "out")]) == 0
    assert seen["image"] == find_brain()
    assert seen["prompts"] == PromptOptions(point=(CLICK,))
    assert isinstance(seen["output"], OutputOptions)
    assert seen["output"].preview == tmp_path / "out" / "brain_preview.png"
    assert (tmp_path / "out").is_dir()
    assert CLICK in capsys.readouterr().out


def test_finding_the_scan_does_not_import_nilearn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "nilearn", raising=False)
    find_brain()

    assert "nilearn" not in sys.modules
