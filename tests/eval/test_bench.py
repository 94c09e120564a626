"""The cost table: what a worker measures, what the parent makes of it, what it refuses."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastsam3d.errors import ConfigError
from fastsam3d.eval import bench
from fastsam3d.eval.bench_engine import ENGINES
from fastsam3d.eval.bench_official import find_contender, import_official, is_student
from fastsam3d.eval.bench_presets import find_preset
from fastsam3d.eval.bench_worker import (
    CLICKS_PER_PASS,
    Bench,
    OwnContender,
    WorkerSpec,
    phantom_roi,
    serve,
    time_session,
)
from fastsam3d.io import write_volume
from fastsam3d.model.checkpoint import save_checkpoint
from fastsam3d.model.registry import build_model
from tests.cli.weights import write_toy_weights
from tests.model.tiny import TINY_TEACHER, tiny_card
from tests.session.phantoms import ball_volume


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return write_toy_weights(tmp_path / "toy.safetensors")


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    state = build_model(TINY_TEACHER).state_dict()
    save_checkpoint(state, tmp_path / "teacher.safetensors", tiny_card())
    return tmp_path / "teacher.safetensors"


def sample_row(name: str, encode: list[float], click: list[float]) -> dict:
    end = [sum(pair) for pair in zip(encode, click, strict=True)]
    quantities = {"encode": encode, "click": click, "end_to_end": end}
    return {"name": name, **{q: {"cold_ms": 9.0, "samples_ms": v} for q, v in quantities.items()}}


def test_a_ratio_is_the_references_median_over_the_models() -> None:
    slow = sample_row("slow", [40.0, 42.0, 44.0], [4.0, 4.0, 4.0])
    quick = sample_row("quick", [20.0, 21.0, 70.0], [8.0, 8.0, 8.0])
    quick["session_click"] = {"cold_ms": 1.0, "samples_ms": [5.0]}
    rows = bench.with_statistics([slow, quick], "slow")

    assert rows[1]["ratio"] == pytest.approx(
        {"encode": 2.0, "click": 0.5, "end_to_end": 46.0 / 29.0}
    )
    assert set(rows[0]["ratio"].values()) == {1.0}
    assert rows[1]["encode"]["p95_ms"] == pytest.approx(21 + 0.9 * 49)
    assert rows[1]["encode"]["fastest_ms"] == 20.0


def test_the_floor_is_the_time_of_as_many_flops_in_a_product_of_matrices() -> None:
    row = sample_row("one", [40.0], [4.0])
    row["gemm"] = {"cold_ms": 1.0, "samples_ms": [10.0]}
    row |= {"gemm_flops": 1000, "encode_flops": 2000, "click_flops": 50}
    (done,) = bench.with_statistics([row], "one")
    assert done["over_floor"] == pytest.approx({"encode": 2.0, "click": 8.0})


def test_the_parts_of_an_answer_do_not_exceed_the_whole(toy: Path) -> None:
    timed = Bench(OwnContender(str(toy), "cpu"))
    first, later = timed.cold(), timed.run_pass()

    assert first["peak_memory_bytes"] is None or first["peak_memory_bytes"] >= 0
    timed_parts = {*bench.QUANTITIES, *bench.CPU_QUANTITIES, *bench.GEMM_QUANTITIES}
    assert first["samples"].keys() == later.keys() == timed_parts
    assert 0 < later["encode"][0] < later["end_to_end"][0]
    assert 0 < later["encode_cpu"][0] <= later["end_to_end_cpu"][0]
    assert len(later["click"]) == CLICKS_PER_PASS
    assert min(later["click"]) > 0


def test_flops_and_parameters_are_those_of_the_network(toy: Path, teacher: Path) -> None:
    facts = Bench(OwnContender(str(toy), "cpu")).facts()
    assert facts["image_size"] == 32
    assert facts["weights"] == "file"
    assert facts["parameters"] == sum(
        p.numel() for p in OwnContender(str(toy), "cpu").module.parameters()
    )
    assert facts["encode_flops"] > facts["parameters"]
    fast, padded = (
        Bench(OwnContender(f"{teacher}{suffix}", "cpu")).facts() for suffix in ("", "@reference")
    )
    assert padded["encode_flops"] > fast["encode_flops"]
    assert padded["click_flops"] == fast["click_flops"]


def test_only_compatible_models_have_a_padded_reference(toy: Path) -> None:
    with pytest.raises(ConfigError, match="padded reference"):
        OwnContender(f"{toy}@reference", "cpu")


def test_models_without_weights_are_timed_with_random_ones_and_say_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "fastsam3d.eval.bench_worker.create_model", lambda _: build_model(TINY_TEACHER)
    )
    assert OwnContender("sam_med3d_b", "cpu").weights == "random"


def test_the_phantom_is_a_ball_at_the_centre() -> None:
    roi = phantom_roi(32)[0, 0]
    assert roi[14:18, 14:18, 14:18].mean() > 1.5
    assert roi[:4].mean().abs() < 0.1


def test_a_worker_answers_words_with_json_lines(toy: Path) -> None:
    replies = io.StringIO()
    serve(WorkerSpec(name=str(toy), threads=1), io.StringIO("cold\npass\nfacts\n"), replies)
    label, cold, times, facts = (json.loads(line) for line in replies.getvalue().splitlines())

    assert label == {"label": str(toy)}
    assert cold["samples"].keys() == times.keys() >= set(bench.QUANTITIES)
    assert facts["click_flops"] > 0


def test_a_worker_reports_typed_errors_to_its_parent(tmp_path: Path) -> None:
    replies = io.StringIO()
    serve(WorkerSpec(official=str(tmp_path), threads=1), io.StringIO(""), replies)

    assert "give a checkout of SAM-Med3D or FastSAM3D" in json.loads(replies.getvalue())["error"]


def test_published_code_with_a_missing_import_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "segment_anything" / "modeling"
    folder.mkdir(parents=True)
    for part in ("image_encoder3D", "prompt_encoder3D", "mask_decoder3D"):
        (folder / f"{part}.py").write_text("import module_that_nobody_has\n")
    with pytest.raises(ConfigError, match=r"module_that_nobody_has.*install"):
        import_official(tmp_path)


def test_the_student_is_known_by_its_skipped_attention() -> None:
    class Student:
        def __init__(self, depth: int = 12, skip_layer: int = 2) -> None: ...

    class Teacher:
        def __init__(self, depth: int = 12) -> None: ...

    assert is_student(Student)
    assert not is_student(Teacher)


def test_impossible_runs_are_refused() -> None:
    with pytest.raises(ConfigError, match="Nothing to time"):
        bench.BenchConfig()
    with pytest.raises(ConfigError, match="at least 1"):
        bench.BenchConfig(models=("hr_s",), rounds=0)
    with pytest.raises(ConfigError, match="Precision"):
        bench.BenchConfig(models=("hr_s",), precision="int1")  # pyright: ignore


def test_only_whole_models_of_ours_take_part_in_sessions(tmp_path: Path) -> None:
    config = bench.BenchConfig(
        models=("hr_s", "sam_med3d_b@reference"), official=(tmp_path,), image=tmp_path / "a.nii"
    )
    assert [bool(spec.image) for spec in config.worker_specs()] == [True, False, False]
    assert [spec.official for spec in config.worker_specs()] == [None, None, str(tmp_path)]


def test_a_run_writes_every_time_and_where_it_came_from(toy: Path) -> None:
    out = toy.with_name("cost.json")
    arguments = [str(toy), "--rounds", "2", "--warmup", "0", "--output", str(out)]
    assert bench.main(arguments) == 0
    content = json.loads(out.read_text())

    assert {"command", "commit", "device", "threads", "precision", "torch", "date"} <= set(content)
    assert content["format"] == bench.BENCH_FORMAT
    assert content["reference"] == str(toy)
    (row,) = content["models"]
    assert len(row["encode"]["samples_ms"]) == 2
    assert len(row["click"]["samples_ms"]) == 2 * CLICKS_PER_PASS
    assert row["ratio"]["end_to_end"] == 1.0
    assert set(bench.QUANTITIES) <= set(content["definitions"]) & set(row)
    assert len(bench.cost_table(content)[1]) == len(bench.cost_table(content)[0])


def test_the_bench_needs_torch_and_numpy_only() -> None:
    absent = ("rich", "cyclopts", "scipy", "SimpleITK", "pydicom", "PIL", "skimage")
    code = f"import sys\nsys.modules.update(dict.fromkeys({absent!r}))\n"
    code += "import fastsam3d.eval.bench, fastsam3d.eval.bench_official"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_session_is_timed_on_a_scan_anew_each_time(toy: Path) -> None:
    scan = toy.with_name("scan.nii.gz")
    write_volume(ball_volume(shape=(24, 24, 24), centre_mm=(12, 12, 12), radius_mm=5), scan)
    times = time_session(WorkerSpec(name=str(toy), image=str(scan), point=(12, 12, 12)))
    for samples in (next(times), next(times)):
        assert samples.keys() == set(bench.SESSION_QUANTITIES)
        assert min(min(values) for values in samples.values()) > 0


def test_the_roofline_is_the_longer_of_computing_and_moving_bytes() -> None:
    row = sample_row("one", [40.0], [4.0])
    row["gemm"] = row["copy"] = {"cold_ms": 1.0, "samples_ms": [10.0]}
    row |= {"gemm_flops": 1000, "encode_flops": 2000, "click_flops": 50}
    row |= {"copy_bytes": 1000, "encode_bytes": 100, "click_bytes": 200}
    (done,) = bench.with_statistics([row], "one")
    assert done["over_roofline"] == pytest.approx({"encode": 40 / 20, "click": 4 / 2})


def test_a_model_that_cannot_be_made_does_not_lose_the_others(toy: Path) -> None:
    kept: list[dict] = []
    config = bench.BenchConfig(models=("nonsense", f"{toy}@cuda_graph"), rounds=1, warmup=0)
    result = bench.run_bench(config, on_result=kept.append)
    assert [row["name"] for row in result["models"]] == [f"{toy}@cuda_graph"]
    assert "nonsense" in result["failed"]["nonsense"]
    assert result["models"][0]["encode_flops"] > 0
    assert len(kept) == 1


def test_the_preset_for_gpus_times_the_engine_of_each_model_that_it_times_eagerly() -> None:
    labels = find_preset("gpu").models
    engines = [label.split("@") for label in labels if "cuda_graph" in label]
    assert {name for name, _ in engines} == {label for label in labels if "@" not in label}
    assert {engine for _, engine in engines} <= set(ENGINES)
    assert not any("cuda_graph" in label for label in find_preset("cpu").models)


def test_slices_are_asked_of_a_checkout_of_the_flat_model(tmp_path: Path) -> None:
    folder = tmp_path / "segment_anything" / "modeling"
    folder.mkdir(parents=True)
    (folder / "image_encoder.py").write_text("import module_that_nobody_has\n")
    with pytest.raises(ConfigError, match=r"module_that_nobody_has.*install"):
        find_contender(tmp_path, "cpu")
