"""The paper's page shows what its files say: figures of made-up rows are known by heart."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import paper_distillation, paper_tables
from benchmarks.paper_distillation import collect, main, thinned
from benchmarks.paper_figures import draw
from benchmarks.paper_tables import ABLATION, DISTILLATION, TABLES, render, stale
from fastsam3d.errors import DatasetError
from fastsam3d.eval.results import append_rows
from tests.eval.rows import curve

ROOT = Path(__file__).parent.parent.parent
JSON = ROOT / "benchmarks"
SUBJECTS = {"a__1": "Ann", "a__2": "Bob", "b__1": "Cyd"}
TARGETS = [("a__1", "liver"), ("a__2", "liver"), ("a__2", "spleen"), ("b__1", "heart")]


def write_rows(folder: Path, name: str, dice: float, *, targets: Any = TARGETS) -> None:
    """Equal Dice of every target, five points more from click to click up to the third."""
    lines = [
        {"arm": "default", "case": case, "source": case[0], "structure": structure}
        | {"dice": [dice, dice + 0.05, *[dice + 0.1] * 8], "q": [0.5] * 10, "mm": [1.0] * 10}
        for case, structure in targets
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / f"{name}.rows.jsonl").write_text(text)


def write_run(folder: Path, name: str, *, num_lines: int = 4) -> None:
    lines = [
        {"step": 25 * n, "num_steps": 25 * num_lines, "seconds": 6.0 * n, "rois": 50 * n}
        | {"skipped": 0, "loss": 1.0, "layer1_error": 1 / n}
        | ({"iou": 0.1 * n} if n > num_lines / 2 else {})
        for n in range(1, num_lines + 1)
    ]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config: dict[str, Any] = {"model": "fastsam3d_6l", "minutes": 0.4, "seed": 3, "ema": 0.9}
    config["generator"] = {"size": 128, "num_real": 2}
    facts = {"seconds_per_step": {"neck": 0.1}}
    (folder / f"{name}.run.json").write_text(json.dumps({"config": config, "facts": facts}))


def write_errors(folder: Path, *names: str) -> None:
    layers = [
        {"name": "layer1", "teacher_layer": 2, "error": 0.25, "alignment": 0.9},
        {"name": "neck", "teacher_layer": None, "error": 0.5, "alignment": 0.8},
    ]
    students = {f"{name}/averaged": {"sha256": "0", "layers": layers} for name in names}
    (folder / "errors.json").write_text(json.dumps({"students": students}))


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """A chain's files: the teacher is ten points better than one student, twenty than another."""
    folder = tmp_path / "chain"
    folder.mkdir()
    for name, dice in (("teacher", 0.8), ("progressive", 0.7), ("from_scratch", 0.6)):
        write_rows(folder, name, dice)
        write_run(folder, name)
    write_errors(folder, "progressive")
    return folder


@pytest.fixture
def record(tmp_path: Path, chain: Path) -> Path:
    """A folder of JSON files with the chain's record, and all that other tables need."""
    folder = tmp_path / "json"
    folder.mkdir()
    for path in JSON.glob("*.json"):
        if path.name not in (DISTILLATION, ABLATION):
            (folder / path.name).symlink_to(path)
    subjects = tmp_path / "subjects.json"
    targets = [{"case": case, "subject": who} for case, who in SUBJECTS.items()]
    subjects.write_text(json.dumps({"targets": targets}))
    words = ["--device", "a GPU", "--commit", "abcdef123", "--date", "2020-01-02T03:04"]
    words += ["--subjects", str(subjects), "--output", str(folder / DISTILLATION)]
    assert main([str(chain), *words]) == 0
    return folder


def cells(table: str, row: str) -> list[str]:
    """Return the cells of the row that begins with these words."""
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {row}")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_the_page_shows_what_the_files_say() -> None:
    """Run ``python benchmarks/paper_tables.py`` if this fails."""
    assert stale(paper_tables.PAGE.read_text(), JSON) == []


def test_the_page_has_every_table_and_figure() -> None:
    page = paper_tables.PAGE.read_text()

    assert sorted(re.findall(r"<!-- table: (\w+) -->", page)) == sorted(TABLES)
    for path in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page):
        assert (paper_tables.PAGE.parent / path).is_file()


def test_known_rows_give_the_known_dice(record: Path) -> None:
    table = TABLES["dice"](record)

    shown = [".700", ".800", ".800", ".800", ".800 to .800"]
    assert cells(table, "progressive") == shown
    assert cells(table, "SAM-Med3D")[:4] == ["no weights"] * 4
    assert "json/paper_distillation.json`: a GPU, commit abcdef1, 2020-01-02" in table
    assert cells(TABLES["sources"](record), "from scratch") == [".700", ".700"]


def test_a_known_difference_gives_the_known_table(record: Path) -> None:
    less_teacher = TABLES["less_teacher"](record)

    assert cells(less_teacher, "progressive") == ["-10.0 (-10.0 to -10.0)"] * 4
    assert cells(less_teacher, "from scratch") == ["-20.0 (-20.0 to -20.0)"] * 4
    assert cells(TABLES["less_scratch"](record), "progressive") == ["+10.0 (+10.0 to +10.0)"] * 4


def test_modes_have_minutes_steps_and_the_error_of_each_layer(record: Path) -> None:
    table = TABLES["distillation"](record)

    assert cells(table, "progressive") == ["0.4", "100", ".800", ".250", ".500"]
    assert cells(table, "from scratch") == ["0.4", "100", ".700", "-", "-"]
    assert cells(TABLES["alignment"](record), "progressive") == [".900", ".800"]


def test_the_record_says_how_it_was_made(record: Path) -> None:
    found = json.loads((record / DISTILLATION).read_text())

    assert (found["device"], found["commit"]) == ("a GPU", "abcdef123")
    assert found["command"].startswith("python benchmarks/paper_distillation.py chain")
    assert found["models"]["progressive"]["config"] == {
        "model": "fastsam3d_6l",
        "minutes": 0.4,
        "seed": 3,
        "roi_voxels": 128,
    }


def test_targets_that_one_model_lacks_are_not_compared(chain: Path) -> None:
    write_rows(chain, "progressive", 0.7, targets=TARGETS[:3])
    found = collect(chain, SUBJECTS)

    assert found["models"]["progressive"]["num_targets"] == 3
    assert found["differences"]["progressive"]["teacher"]["num_targets"] == 3
    assert found["differences"]["from_scratch"]["teacher"]["num_targets"] == 4


def test_intervals_redraw_people_not_scans(chain: Path) -> None:
    lines = (chain / "progressive.rows.jsonl").read_text().splitlines()
    better = json.loads(lines[0]) | {"dice": [1.0] * 10}
    (chain / "progressive.rows.jsonl").write_text("\n".join([json.dumps(better), *lines[1:]]))

    _, low, high = collect(chain, SUBJECTS)["models"]["progressive"]["dice"]["1"]
    assert low < high
    one = dict.fromkeys(SUBJECTS, "Ann")  # nobody else could be drawn
    _, low, high = collect(chain, one)["models"]["progressive"]["dice"]["1"]
    assert low == high


def test_folders_of_evaluations_and_runs_serve_as_well(chain: Path) -> None:
    (chain / "all_layers-dev").mkdir()
    rows = [row for case, name in TARGETS for row in curve(case, name, *[0.5] * 10)]
    append_rows(chain / "all_layers-dev" / "results.jsonl", rows)
    write_run(chain, "x")
    (chain / "all_layers").mkdir()
    (chain / "x.jsonl").rename(chain / "all_layers" / "log.jsonl")
    found = collect(chain, SUBJECTS)["models"]

    assert list(found) == ["teacher", "progressive", "all_layers", "from_scratch"]
    assert found["all_layers"]["dice"]["10"] == [0.5, 0.5, 0.5]
    assert found["all_layers"]["steps"] == 100


def test_other_models_are_called_as_asked(chain: Path) -> None:
    write_rows(chain, "wide", 0.3)
    found = collect(chain, SUBJECTS, words={"wide": "a whole volume"})["models"]

    assert list(found)[-1] == "wide"
    assert found["wide"]["words"] == "a whole volume"


@pytest.mark.parametrize(("planned", "steps", "minutes"), [(110, 110, 0.44), (200, 100, 0.4)])
def test_a_run_that_was_cut_off_has_the_steps_it_made(
    chain: Path, planned: int, steps: int, minutes: float
) -> None:
    path = chain / "progressive.jsonl"
    path.write_text(path.read_text().replace('"num_steps": 100', f'"num_steps": {planned}'))
    found = collect(chain, SUBJECTS)["models"]["progressive"]

    assert (found["steps"], found["planned_steps"], found["minutes"]) == (steps, planned, minutes)


def test_curves_are_thinned_by_means() -> None:
    log = [{"step": n, "seconds": 60.0 * n, "iou": float(n)} for n in range(1, 131)]
    del log[0]["iou"], log[1]["iou"], log[2]["iou"], log[3]["iou"]
    found = thinned(log)

    assert len(found["step"]) == 44
    assert (found["step"][0], found["minutes"][0], found["iou"][:3]) == (3, 3.0, [None, 5.5, 8.0])
    assert thinned([])["step"] == []


Edit = Callable[[list[str]], list[str]]
EDITS: list[tuple[Edit, str]] = [
    (lambda lines: [*lines, lines[0]], "twice"),
    (lambda lines: [line.replace("a__1", "c__9") for line in lines], "c__9"),
    (lambda lines: [line.replace("default", "other") for line in lines], "0 lines of arm"),
    (lambda lines: [*lines, "{"], "Could not read"),
]


@pytest.mark.parametrize(("edit", "message"), EDITS)
def test_rows_that_cannot_be_right_are_refused(chain: Path, edit: Edit, message: str) -> None:
    path = chain / "teacher.rows.jsonl"
    path.write_text("\n".join(edit(path.read_text().splitlines())))

    with pytest.raises(DatasetError, match=message):
        collect(chain, SUBJECTS)


def test_a_folder_without_rows_and_a_record_too_large_are_refused(
    chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DatasetError, match="holds no"):
        collect(tmp_path, SUBJECTS)
    subjects = tmp_path / "subjects.json"
    targets = [{"case": case, "subject": who} for case, who in SUBJECTS.items()]
    subjects.write_text(json.dumps({"targets": targets}))
    monkeypatch.setattr(paper_distillation, "MAX_BYTES", 100)
    words = ["--device", "x", "--subjects", str(subjects), "--output", str(tmp_path / "big.json")]
    with pytest.raises(DatasetError, match="bytes"):
        main([str(chain), *words])
    assert not (tmp_path / "big.json").exists()


def test_an_edited_number_is_found(
    record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("Before\n<!-- table: dice -->\n<!-- end -->\nAfter .800\n")
    words = ["--page", str(page), "--folder", str(record)]
    assert paper_tables.main(["--check", *words]) == 1

    assert paper_tables.main(words) == 0
    assert paper_tables.main(["--check", *words]) == 0
    text = page.read_text()
    assert text.startswith("Before\n<!-- table: dice -->\n\n| ")
    assert text.endswith("<!-- end -->\nAfter .800\n")

    capsys.readouterr()
    page.write_text(text.replace("| .700 | .800", "| .701 | .800", 1))
    assert paper_tables.main(["--check", *words]) == 1
    assert "Table dice of page.md" in capsys.readouterr().err
    page.write_text(text.replace("After .800", "After .801"))  # words are the author's
    assert paper_tables.main(["--check", *words]) == 0


def test_what_is_not_measured_is_said_not_made_up(record: Path) -> None:
    (record / DISTILLATION).unlink()
    for name in ("sources", "distillation", "alignment", "less_teacher", "figure_clicks"):
        assert TABLES[name](record).strip() == "Not measured yet."
    assert cells(TABLES["dice"](record), "`sam_med3d_b`")[:4] == ["not measured yet"] * 4
    assert cells(TABLES["attention_time"](record), "8")[0] == "not measured yet"


def test_the_ablation_takes_the_place_of_the_longer_benchmark(record: Path) -> None:
    times = [
        {
            "method": method,
            "side": side,
            "forward_backward_ms": ms,
            "forward_backward_peak_mib": mib,
        }
        for side, method, ms, mib in (
            (8, "dense math", 4.0, 9.0),
            (8, "dense", 2.0, 1.0),
            (8, "dense cudnn", 1.0, 1.0),
            (8, "dilated sdpa", 6.0, 2.0),
            (8, "dilated triton", 0.5, 1.0),
            (16, "dilated triton", 5.0, 8.0),
        )
    ]
    about = {"device": "a GPU", "commit": "1", "date": "2020-01-02", "times": times}
    (record / ABLATION).write_text(json.dumps(about))

    time, memory = TABLES["attention_time"](record), TABLES["attention_memory"](record)
    assert cells(time, "8") == ["4.00", "1.00", "6.00", "0.500", "2.00\N{MULTIPLICATION SIGN}"]
    assert cells(time, "16") == ["-", "-", "-", "5.00", "-"]
    assert [cells(memory, row)[-1] for row in ("8", "16")] == ["2.0", "2.0"]


def test_larger_rois_have_a_table_of_their_own(record: Path) -> None:
    found = json.loads((record / DISTILLATION).read_text())
    wide = found["models"]["progressive"]
    wide["config"] |= {"roi_voxels": 256, "attention": "dilated"}
    wide["large"] = {"num_targets": 2, "dice": {"1": 0.5, "3": 0.61, "5": 0.7}}
    (record / DISTILLATION).write_text(json.dumps(found))

    shown = ["256³", "dilated", "0.4", ".700", ".800", ".800", ".500 / .610 / .700"]
    assert cells(TABLES["wide"](record), "progressive") == shown
    assert "progressive" not in TABLES["distillation"](record)
    del found["models"]["progressive"]
    (record / DISTILLATION).write_text(json.dumps(found))
    assert TABLES["wide"](record).strip() == "Not measured yet."


def test_marks_that_mean_nothing_are_refused() -> None:
    for page in ("<!-- table: nonsense -->\n<!-- end -->", "<!-- table: dice -->\n"):
        with pytest.raises(DatasetError):
            render(page, JSON)


def test_figures_are_drawn_from_the_record(record: Path, tmp_path: Path) -> None:
    draw(json.loads((record / DISTILLATION).read_text()), tmp_path / "figures")

    drawn = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert drawn == ["paper_clicks.png", "paper_layers.png", "paper_training.png"]
