"""The README's figures are those of the committed files, and of nothing else."""

import json
from pathlib import Path

import pytest

from fastsam3d.cli.main import main
from fastsam3d.errors import DatasetError
from fastsam3d.eval.outputs import export_run, read_export
from fastsam3d.eval.protocol import InteractionProtocol
from fastsam3d.eval.results_table import (
    END_MARK,
    START_MARK,
    render_results,
    replace_results,
    share,
)
from tests.eval.outputs import write_output
from tests.eval.rows import curve

ROOT = Path(__file__).parent.parent.parent
ROWS = [*curve("a__1", "x", 0.5, 0.6), *curve("a__2", "x", 0.7, 0.8), *curve("b__1", "y", 1, 1)]
CONFIG = {
    "before": ["{{run.json:summary.overall.num_targets:d}} targets."],
    "columns": [["1 click", "dice@1"], ["2", "dice@2"], ["95 %", "dice@2:interval"]],
    "runs": [{"file": "run.json", "name": "`hr_s`", "bold": True, "sources": {"a": "livers"}}],
    "after": [
        "Below .5: {{run.json:summary.failures:.0%}}; first {{run.json:summary.macro.0:share}}."
    ],
}


def write_config(folder: Path, **changes: object) -> Path:
    export_run(write_output(folder / "out", ROWS), folder / "run.json")
    path = folder / "results.json"
    path.write_text(json.dumps(CONFIG | changes))
    return path


@pytest.mark.parametrize(
    ("config", "page"),
    [("results.json", "README.md"), ("model_card.json", "docs/model-card.md")],
)
def test_pages_show_what_the_files_say(config: str, page: str) -> None:
    """Run `fastsam3d results-table benchmarks/CONFIG --write PAGE` if this fails."""
    text = (ROOT / page).read_text()

    assert replace_results(text, render_results(ROOT / "benchmarks" / config)) == text


def test_every_shown_run_says_how_it_was_made() -> None:
    config = json.loads((ROOT / "benchmarks" / "results.json").read_text())
    for shown in config["runs"]:
        start = read_export(ROOT / "benchmarks" / shown["file"]).run["starts"][-1]
        assert {"command", "commit", "device", "date"} <= start.keys()


def test_a_block_has_words_rows_and_files(tmp_path: Path) -> None:
    block = render_results(write_config(tmp_path))

    assert block.splitlines() == [
        "3 targets.",
        "",
        "| | 1 click | 2 | 95 % |",
        "|---|---|---|---|",
        "| **`hr_s`** | **.80** | **.85** | **.80 to .90** |",
        "| a, livers | .60 | .70 | .60 to .80 |",
        "",
        "Below .5: 0%; first .80.",
        "",
        f"Files: `{tmp_path.name}/run.json`; command, commit, device and date are in each.",
    ]


def test_structures_are_listed_by_source_the_best_first(tmp_path: Path) -> None:
    rows = [*ROWS, *curve("a__3", "z_left", 0.9, 0.95), *curve("a__4", "x", 0.1, 0.2)]
    export_run(write_output(tmp_path / "more", rows), tmp_path / "more.json")
    runs = [{"file": "more.json", "name": "`hr_s`", "structures": True}]
    block = render_results(write_config(tmp_path, runs=runs))

    assert block.splitlines()[6:12] == [
        "| source | structure | targets | 1 click | below .5 |",
        "|---|---|---|---|---|",
        "| a | z left | 1 | .90 | 0 |",
        "| a | x | 3 | .43 | 1 |",
        "| b | y | 1 | 1.00 | 0 |",
        "",
    ]


def test_a_column_that_no_run_has_is_left_out(tmp_path: Path) -> None:
    columns = [["1 click", "dice@1"], ["10 clicks", "dice@10"]]
    block = render_results(write_config(tmp_path, columns=columns))

    assert "10 clicks" not in block


def test_upper_bounds_are_marked(tmp_path: Path) -> None:
    paper = InteractionProtocol(name="paper", num_clicks=2)
    export_run(write_output(tmp_path / "p", ROWS, protocol=paper), tmp_path / "paper.json")
    runs = [{"file": "paper.json", "name": "published protocol"}]

    assert "published protocol (oracle upper bound)" in render_results(
        write_config(tmp_path, runs=runs)
    )


def test_only_the_block_between_the_marks_changes() -> None:
    text = f"a\n{START_MARK}\nold\n{END_MARK}\nb\n"

    assert replace_results(text, "new") == f"a\n{START_MARK}\nnew\n{END_MARK}\nb\n"
    for broken in ("a", f"{END_MARK}{START_MARK}", text + text):
        with pytest.raises(DatasetError, match="once each"):
            replace_results(broken, "new")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"after": ["{{run.json:summary.nonsense:.0%}}"]}, "cannot be filled in"),
        ({"after": ["{{absent.json:x:d}}"]}, "Could not read"),
        ({"runs": [{"file": "run.json"}]}, "no 'name'"),
        ({"runs": [{"file": "run.json", "name": "x", "sources": {"z": ""}}]}, "no source 'z'"),
        ({"runs": [{"file": "run.json", "name": "x", "groups": {"z": ""}}]}, "no group 'z'"),
        ({"columns": "dice@1"}, "list named 'columns'"),
        ({"runs": [{"file": "results.json", "name": "x"}]}, "no exported evaluation"),
    ],
)
def test_what_cannot_be_shown_is_named(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        render_results(write_config(tmp_path, **changes))


def test_an_export_keeps_every_targets_curve(tmp_path: Path) -> None:
    export_run(write_output(tmp_path / "out", ROWS), tmp_path / "run.json")
    targets = json.loads((tmp_path / "run.json").read_text())["targets"]

    assert [target["dice"] for target in targets] == [[0.5, 0.6], [0.7, 0.8], [1.0, 1.0]]
    assert targets[0]["subject"] == "a__1"
    assert read_export(tmp_path / "run.json").summary.macro == pytest.approx([0.8, 0.85])


def test_shares_have_no_zero_in_front() -> None:
    assert [share(value) for value in (0.0, 0.714, 1.0)] == [".00", ".71", "1.00"]


def test_the_command_exports_prints_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path)
    document = tmp_path / "README.md"
    document.write_text(f"{START_MARK}\n{END_MARK}\n")
    exported = tmp_path / "again.json"

    assert main(["results-table", "--export", str(tmp_path / "out"), str(exported)]) == 0
    assert exported.read_bytes() == (tmp_path / "run.json").read_bytes()
    assert main(["results-table", str(config), "--write", str(document)]) == 0
    assert "| a, livers |" in document.read_text()
    capsys.readouterr()
    assert main(["results-table", str(config)]) == 0
    assert capsys.readouterr().out.strip() in document.read_text()
    assert main(["results-table", str(config), "--write", str(tmp_path / "absent.md")]) == 1
