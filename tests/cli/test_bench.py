"""`fastsam3d bench` prints a table and writes JSON; the run itself is tested in tests/eval."""

import json
from pathlib import Path

import pytest

from fastsam3d.cli.main import main
from fastsam3d.eval import bench, bench_volume


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
            "gemm_flops": 2_000_000_000,
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


def test_a_preset_names_models_and_settings_that_words_may_replace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[bench.BenchConfig] = []

    def keep(config: bench.BenchConfig, *, on_step: object) -> dict:
        asked.append(config)
        return made_up(config, on_step=on_step)

    monkeypatch.setattr(bench, "run_bench", keep)
    assert main(["bench", "--preset", "gpu"]) == 0
    assert main(["bench", "hr_s", "--preset", "gpu", "--precision", "bfloat16"]) == 0
    assert main(["bench", "--preset", "gpu", "--official", "published"]) == 0
    whole, own, beside = asked
    assert (whole.device, whole.precision) == ("cuda", "tf32")
    assert whole.reference == "sam_med3d_b@reference" in whole.models
    assert (beside.models, beside.official) == (whole.models, (Path("published"),))
    assert own.models == ("hr_s",)
    assert (own.device, own.precision, own.reference) == ("cuda", "bfloat16", "")


def test_volumes_are_timed_with_one_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = {"first_ms": 9.0, "first_cpu_ms": 8.0, "later_ms": 3.0, "later_cpu_ms": 2.0}
    shared = {"sessions": 16, **times, "turn_ms": 50.0, "answers": 80, "mismatches": 0}
    sizes = [{"shape": (64, 64, 64), **times}]
    result = {"sizes": sizes, "spread": times, "sessions": [shared], "files": []}
    monkeypatch.setattr(bench_volume, "run_volume_bench", lambda *_, **__: result)
    out = tmp_path / "volume.json"
    assert main(["bench", "--preset", "volume", "--output", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "64x64x64" in shown
    assert "0 of 80 answers differ" in shown
    assert json.loads(out.read_text())["threads"] == 1
    assert main(["bench", "a", "b", "--preset", "volume"]) == 2
    assert "one model" in capsys.readouterr().err
