import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastsam3d.errors import CheckpointError, ConfigError, DatasetError, ModelNotFoundError
from fastsam3d.eval import segmenters
from fastsam3d.eval.cases import EvalCase, write_case_pack
from fastsam3d.eval.evaluation import (
    EvaluationOptions,
    Outcome,
    Progress,
    evaluate,
    weights_sha256,
)
from fastsam3d.eval.protocol import InteractionProtocol
from fastsam3d.eval.results import ResultRow, append_rows, read_json_lines, read_rows
from fastsam3d.eval.snapshot import load_snapshot, snapshot_name
from fastsam3d.model.registry import load_card
from tests.eval.slow_run import run as run_ball
from tests.eval.test_folders import write_case
from tests.eval.toy import (
    NothingSegmenter,
    ShiftedThreshold,
    ThresholdSegmenter,
    make_case,
)

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """Three cases of two sources, with three structures each, one of them below 30 voxels."""
    cases = [make_case(name, seed=n) for n, name in enumerate(("a__1", "a__2", "b__1"))]
    write_case_pack(cases, tmp_path / "cases.npz")
    return tmp_path / "cases.npz"


def run(
    pack: Path, segmenter: Callable[[], Any], output: Path | None = None, **protocol: Any
) -> Outcome:
    options = EvaluationOptions(
        cases=pack, model="toy", protocol=InteractionProtocol(**{"num_clicks": 2, **protocol})
    )
    return evaluate(options, output or pack.with_name("run"), segmenter=segmenter)


def figures(outcome: Outcome) -> dict[str, Any]:
    """Everything of the summary that does not depend on the clock."""
    return vars(replace(outcome.summary, timing_ms={}))


def without_times(rows: list[ResultRow]) -> list[ResultRow]:
    return [replace(row, encode_ms=0.0, click_ms=0.0) for row in rows]


def test_a_perfect_segmenter_scores_1_everywhere(pack: Path) -> None:
    rows = run(pack, ThresholdSegmenter).rows
    assert len(rows) == 3 * 2 * 2
    assert {(row.dice, row.nsd_1mm, row.nsd_2mm, row.hd95_mm) for row in rows} == {(1, 1, 1, 0)}
    assert [row.prompt for row in rows[:2]] == ["point", "none"]
    assert rows[0].truth_ml == rows[0].mask_ml == pytest.approx(7 * 7 * 6 * 1.5 / 1000)


def test_an_empty_segmenter_scores_0_everywhere(pack: Path) -> None:
    rows = run(pack, NothingSegmenter).rows
    assert {(row.dice, row.nsd_1mm, row.nsd_2mm, row.hd95_mm) for row in rows} == {(0, 0, 0, None)}
    assert {row.prompt for row in rows} == {"point"}


def test_a_shift_by_one_voxel_scores_what_arithmetic_says(pack: Path) -> None:
    rows = run(pack, ShiftedThreshold).rows
    # Structures are 7 and 5 voxels wide along i, whose voxels are 1 mm.
    wanted = {"liver": 6 / 7, "spleen": 4 / 5}
    for row in rows:
        assert row.dice == pytest.approx(wanted[row.structure])
        assert (row.nsd_1mm, row.nsd_2mm) == (1.0, 1.0)
        assert row.hd95_mm == pytest.approx(1.0)


def test_the_files_say_how_the_figures_came_about(pack: Path) -> None:
    output = pack.with_name("run")
    outcome = run(pack, ThresholdSegmenter)
    content = json.loads((output / "run.json").read_text())
    assert content["options"]["cases"] == str(pack)
    assert content["options"]["protocol"]["num_clicks"] == 2
    assert content["protocol"]["name"] == "clicks"
    assert content["protocol"]["is_oracle"] is False
    assert len(content["hashes"]["cases"]) == 64
    (start,) = content["starts"]
    assert {"command", "commit", "date", "device", "jobs"} <= start.keys()
    assert read_rows(output / "results.jsonl") == outcome.rows
    assert [line["case"] for line in read_json_lines(output / "cases.jsonl")] == [
        "a__1",
        "a__2",
        "b__1",
    ]
    assert json.loads((output / "summary.json").read_text())["macro"] == [1.0, 1.0]
    for target in {row.target for row in outcome.rows}:
        load_snapshot(output / "snapshots" / snapshot_name(target))


def test_a_finished_run_is_only_summed_up_again(pack: Path) -> None:
    before = run(pack, ThresholdSegmenter)
    told: list[Progress] = []
    options = EvaluationOptions(cases=pack, model="toy", protocol=InteractionProtocol(num_clicks=2))

    def never() -> ThresholdSegmenter:
        raise AssertionError

    output = pack.with_name("run")
    after = evaluate(options, output, segmenter=never, on_progress=told.append)
    assert after.rows == before.rows
    assert [(p.cases_done, p.targets_done) for p in told] == [(3, 6)]
    assert len(json.loads((output / "run.json").read_text())["starts"]) == 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": "other"}, "model"),
        ({"zero_image": True}, "zero_image"),
        ({"mirrors": 4}, "mirrors"),
        ({"protocol": InteractionProtocol(num_clicks=3)}, r"protocol\.num_clicks = 2, got 3"),
        ({"limit": 2}, "hash cases|limit"),
    ],
)
def test_a_resume_with_other_options_is_refused_by_name(
    pack: Path, change: dict[str, Any], named: str
) -> None:
    run(pack, ThresholdSegmenter)
    options = EvaluationOptions(cases=pack, model="toy", protocol=InteractionProtocol(num_clicks=2))
    output = pack.with_name("run")
    before = (output / "results.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=named):
        evaluate(replace(options, **change), output, segmenter=ThresholdSegmenter)
    assert (output / "results.jsonl").read_bytes() == before


def test_other_cases_under_the_same_path_are_refused(pack: Path) -> None:
    run(pack, ThresholdSegmenter)
    write_case_pack([make_case("a__1"), make_case("c__1")], pack)
    with pytest.raises(ConfigError, match="hash cases"):
        run(pack, ThresholdSegmenter)
    (pack.with_name("run") / "run.json").unlink()
    with pytest.raises(ConfigError, match=r"without run\.json"):
        run(pack, ThresholdSegmenter)


def cut_after(path: Path, num_lines: int, *, extra: bytes = b"") -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:num_lines]) + extra)


@pytest.mark.parametrize("num_lines", [0, 1, 3, 5, 6, 11])
@pytest.mark.parametrize("protocol", ["clicks", "cvpr25"])
def test_wherever_a_run_broke_off_the_resume_loses_and_doubles_nothing(
    pack: Path, protocol: str, num_lines: int
) -> None:
    whole = run(pack, ShiftedThreshold, name=protocol)
    results = pack.with_name("run") / "results.jsonl"
    num_rounds = 3 if protocol == "cvpr25" else 2
    cut_after(results, num_lines, extra=b'{"case": "a__1", "subj')
    cut_after(results.with_name("cases.jsonl"), num_lines // (2 * num_rounds))
    again = run(pack, ShiftedThreshold, name=protocol)
    assert without_times(again.rows) == without_times(whole.rows)
    assert sorted(map(str, without_times(read_rows(results)))) == sorted(
        map(str, without_times(whole.rows))
    )
    assert figures(again) == figures(whole)


@pytest.mark.parametrize("jobs", [1, 2])
def test_after_kill_9_in_the_middle_the_summary_is_that_of_an_unbroken_run(
    pack: Path, jobs: int
) -> None:
    whole = run_ball(pack, pack.with_name("whole"))
    broken = pack.with_name("broken")
    command = [sys.executable, "-m", "tests.eval.slow_run", str(pack), str(broken), str(jobs)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen([*command, "0.02"], env=environment, cwd=ROOT)
    try:
        wait_for_rows(broken / "results.jsonl", started)
        workers = children(started.pid)
    finally:
        os.kill(started.pid, signal.SIGKILL)
        started.wait()
    wait_for_end(workers)
    kept = read_rows(broken / "results.jsonl")
    assert 0 < len(kept) < len(whole.rows)
    resumed = run_ball(pack, broken)
    assert figures(resumed) == figures(whole)
    assert without_times(resumed.rows) == without_times(whole.rows)
    # What was there is still there, times included.
    assert set(map(str, kept)) <= set(map(str, resumed.rows))


def children(pid: int) -> list[int]:
    """Processes that a process has started, where the system tells."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def wait_for_end(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker has outlived its parent"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def wait_for_rows(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= 6:
            return
        time.sleep(0.005)
    raise AssertionError(process.poll())


def test_two_processes_give_the_rows_of_one(pack: Path) -> None:
    one = run_ball(pack, pack.with_name("one"))
    two = run_ball(pack, pack.with_name("two"), jobs=2)
    assert without_times(two.rows) == without_times(one.rows)
    assert figures(two) == figures(one)


def test_weights_are_known_by_their_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert weights_sha256("ball:5") is None
    card = load_card("hr_s")
    assert weights_sha256("hr_s") == card.sha256
    monkeypatch.setitem(segmenters.BASELINES, "net", segmenters.BASELINES["ball"])
    weights = tmp_path / "net.pt"
    weights.write_bytes(b"weights")
    assert weights_sha256(f"net:{weights}") == hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(ModelNotFoundError):
        weights_sha256("no_such_model")


def broken_segmenter() -> ThresholdSegmenter:
    raise CheckpointError("Weights are damaged; get them again.")


def test_an_error_in_a_process_comes_back_as_itself(pack: Path) -> None:
    options = EvaluationOptions(cases=pack, model="toy")
    with pytest.raises(CheckpointError, match="damaged"):
        evaluate(options, pack.with_name("run"), segmenter=broken_segmenter, jobs=2)


def test_a_case_that_cannot_be_read_is_skipped_by_name(tmp_path: Path) -> None:
    for name in ("a__1", "a__2"):
        write_case(tmp_path / "cases", name)
    (tmp_path / "cases" / "a__1" / "image.nii.gz").write_bytes(b"no image")
    told: list[Progress] = []
    options = EvaluationOptions(cases=tmp_path / "cases", model="toy")
    for _ in range(2):
        outcome = evaluate(
            options, tmp_path / "run", segmenter=ThresholdSegmenter, on_progress=told.append
        )
        assert list(outcome.skipped) == ["a__1"]
        assert {row.case for row in outcome.rows} == {"a__2"}
    assert any(p.skipped and p.skipped.startswith("a__1: ") for p in told)


def test_nothing_to_evaluate_is_told(tmp_path: Path) -> None:
    case = make_case()
    small = EvalCase(name="a", source="a", volume=case.volume, labels=case.labels * 0)
    write_case_pack([small], tmp_path / "cases.npz")
    with pytest.raises(DatasetError, match="too small"):
        run(tmp_path / "cases.npz", ThresholdSegmenter)
    with pytest.raises(ConfigError, match="jobs"):
        evaluate(EvaluationOptions(cases=tmp_path / "cases.npz", model="x"), tmp_path / "r", jobs=0)
    with pytest.raises(ConfigError, match="limit"):
        EvaluationOptions(cases=tmp_path, model="x", limit=0)


def test_parts_of_a_label_are_targets_of_their_own(tmp_path: Path) -> None:
    case = make_case()
    labels = case.labels.copy()
    labels[labels == 4] = 1
    write_case_pack([replace(case, labels=labels)], tmp_path / "cases.npz")
    rows = run(tmp_path / "cases.npz", NothingSegmenter, use_components=True, num_clicks=1).rows
    assert [(row.label, row.component) for row in rows] == [(1, 1), (1, 2)]
    assert [row.truth_ml for row in rows] == pytest.approx([0.441, 0.420])
    # The middle of each; among equals the first.
    assert [row.position for row in rows] == [(5, 5, 4), (13, 7, 2)]


def test_rows_of_one_target_are_never_split_by_a_second_run(pack: Path) -> None:
    """A run of two processes at once is not meant; what one kill leaves behind is read whole."""
    run(pack, ThresholdSegmenter)
    results = pack.with_name("run") / "results.jsonl"
    first = read_rows(results)[0]
    cut_after(results, 2)
    append_rows(results, [replace(first, label=4, structure="spleen", round=1)])
    (results.with_name("cases.jsonl")).unlink()
    rows = run(pack, ThresholdSegmenter).rows
    assert len(rows) == 12
    assert len(read_rows(results)) == 12
