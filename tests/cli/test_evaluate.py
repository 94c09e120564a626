"""`fastsam3d evaluate` from words to options and files; the run itself is tested in tests/eval."""

import json
from pathlib import Path
from typing import Any

import pytest

from fastsam3d.cli.evaluate import ProtocolOptions
from fastsam3d.cli.main import main
from fastsam3d.cli.usage import UsageError
from fastsam3d.eval import evaluation, report
from fastsam3d.eval.cases import write_case_pack
from fastsam3d.eval.protocol import InteractionProtocol
from fastsam3d.eval.results import read_rows
from tests.eval.toy import make_case


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    write_case_pack([make_case("a__1"), make_case("b__p7f2", seed=1)], tmp_path / "cases.npz")
    return tmp_path / "cases.npz"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders for which a report was asked; drawing is slow and tested elsewhere."""
    folders: list[Path] = []

    def write_report(folder: Path) -> Path:
        folders.append(folder)
        return folder / "report.html"

    monkeypatch.setattr(report, "write_report", write_report)
    return folders


def test_a_baseline_is_evaluated_into_a_folder(
    pack: Path, drawn: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    output = pack.with_name("out")
    words = ["evaluate", str(pack), "--model", "ball:4", "--clicks", "2", "-o", str(output)]
    assert main([*words, "--subject", "p[0-9]+"]) == 0
    rows = read_rows(output / "results.jsonl")
    assert {(row.case, row.subject) for row in rows} == {("a__1", "a__1"), ("b__p7f2", "b/p7")}
    assert {row.round for row in rows} == {1, 2}
    content = json.loads((output / "run.json").read_text())
    assert content["options"]["model"] == "ball:4"
    assert content["hashes"]["weights"] is None
    assert drawn == [output]
    shown = capsys.readouterr().out
    assert shown.startswith("ball:4: Clicks on whole volumes")
    assert "macro" in shown
    assert f"Results: {output}" in shown


def test_the_oracle_is_labelled_where_its_figures_are_printed(
    pack: Path, drawn: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(pack), "--model", "ball:4", "--protocol", "paper", "--limit", "1"]
    output = pack.with_name("out")
    assert main([*words, "--limit-targets", "1", "--clicks", "1", "-o", str(output)]) == 0
    assert "ORACLE UPPER BOUND" in capsys.readouterr().out.splitlines()[0]
    protocol = json.loads((output / "run.json").read_text())["protocol"]
    assert protocol["is_oracle"] is True
    assert "ORACLE UPPER BOUND" in protocol["label"]
    assert drawn == [output]


def test_a_resume_with_other_options_is_one_sentence(
    pack: Path, drawn: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(pack), "--model", "ball:4", "-o", str(pack.with_name("out"))]
    assert main([*words, "--clicks", "1"]) == 0
    capsys.readouterr()
    assert main([*words, "--clicks", "2"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "num_clicks = 1, got 2" in captured.err
    assert "Traceback" not in captured.err
    assert len(drawn) == 1


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ({}, {"num_clicks": 5, "placement": "centre", "seeds": (0,), "min_voxels": 30}),
        ({"policy": "random"}, {"placement": "uniform", "seeds": (0, 1, 2, 3, 4)}),
        ({"policy": "jitter", "seeds": 2}, {"placement": "jitter", "seeds": (0, 1)}),
        ({"protocol": "cvpr25"}, {"name": "cvpr25", "min_voxels": 1, "seeds": (0,)}),
        ({"protocol": "paper", "seeds": 3}, {"name": "paper", "seeds": (0, 1, 2)}),
        ({"components": True, "min_voxels": 9}, {"use_components": True, "min_voxels": 9}),
        ({"limit_targets": 4, "clicks": 10}, {"max_targets": 4, "num_clicks": 10}),
    ],
)
def test_options_become_a_protocol(words: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert ProtocolOptions(**words).resolve() == InteractionProtocol(**wanted)


@pytest.mark.parametrize(
    "words",
    [{"policy": "random", "protocol": "paper"}, {"seeds": 3}, {"seeds": 2, "policy": "centre"}],
)
def test_options_that_contradict_are_wrong_usage(words: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ProtocolOptions(**words).resolve()


def test_every_option_reaches_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[Any, dict[str, Any]]] = []

    def run(options: Any, output: Path, **given: Any) -> None:
        asked.append((options, {"output": output, **given}))
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "evaluate", run)
    groups = tmp_path / "groups.csv"
    groups.write_text("source,structure,source_seen,structure_seen\na,*,no,yes\n")
    words = ["evaluate", "cases", "-o", "out", "--groups", str(groups), "--jobs", "3"]
    words += ["--model", "m", "--device", "cuda", "--zero-image", "--split", "dev", "--limit", "7"]
    regions = tmp_path / "regions.csv"
    regions.write_text("source,region,labels\na,organs,liver;4\n")
    words += ["--truth", "gts", "--npz-spacing", "zyx", "--mirrors", "4"]
    words += ["--regions", str(regions)]
    assert main(words) == 130
    ((options, given),) = asked
    assert (options.cases, options.model, options.device) == (Path("cases"), "m", "cuda")
    assert (options.zero_image, options.split, options.limit) == (True, "dev", 7)
    assert (options.truth, options.spacing_order) == (Path("gts"), "zyx")
    assert options.mirrors == 4
    assert options.regions.rules == {"a": {"organs": ("liver", "4")}}
    assert given["jobs"] == 3
    assert given["groups"].of("a", "liver") == ("source unseen", "structure seen")
    assert capsys.readouterr().err.endswith("Interrupted.\n")
