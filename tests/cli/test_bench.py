"""`fastsam3d bench` prints a table and writes JSON; the run itself is tested in tests/eval."""

import json
from pathlib import Path

import pytest

from fastsam3d.cli.main import main
from fastsam3d.eval import bench


def made_up(config: bench.BenchConfig, *, on_step: object) -> dict:
    del on_step
    rows = [
        {
            "name": name,
            "weights": "random",
            "image_size": 128,
            "parameters": 2_000_000,
            "encode_flops": 3_000_000_000,
            "click_flops": 40_000_000,
            "peak_memory_bytes": None,
            **{
                quantity: {"cold_ms": 8.0, "samples_ms": [4.0 / number] * 3}
                for quantity in bench.QUANTITIES
            },
        }
        for number, name in enumerate(config.models, start=1)
    ]
    return {
        "reference": config.models[0],
        "models": bench.with_statistics(rows, config.models[0]),
    }


def test_the_table_has_a_row_per_model_and_the_json_the_circumstances(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "run_bench", made_up)
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "cost.json"
    words = ["bench", "hr_s", "sam_med3d_b", "--rounds", "3", "--output", str(out)]
    assert main(words) == 0
    shown = capsys.readouterr().out

    assert "hr_s" in shown
    assert "2.00" in next(line for line in shown.splitlines() if "sam_med3d_b" in line)
    assert json.loads(out.read_text())["models"][1]["ratio"]["click"] == 2.0


def test_wrong_words_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "hr_s", "--image", "a.nii.gz"]) == 2
    assert "--image and --point" in capsys.readouterr().err
    assert main(["bench", "hr_s", "--image", "a.nii.gz", "--point", "1,2"]) == 2
    assert main(["bench"]) == 1
    assert "name a model" in capsys.readouterr().err
