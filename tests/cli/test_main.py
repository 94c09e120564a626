"""The command as a whole: help, version, exit codes, and a frozen list of options."""

import re
import subprocess
import sys

import pytest

import fastsam3d
from fastsam3d.cli.main import COMMANDS, main

OPTIONS = {
    ("segment",): {
        "--box",
        "--cache",
        "--device",
        "--engine",
        "--force",
        "--frame",
        "--json",
        "--mirrors",
        "--model",
        "--negative",
        "--output",
        "--point",
        "--preview",
        "--space",
        "--time",
    },
    ("serve",): {
        "--allow-host",
        "--allow-origin",
        "--api-key",
        "--datastore",
        "--device",
        "--dicomweb-url",
        "--engine-process",
        "--host",
        "--max-sessions",
        "--max-upload-gib",
        "--model",
        "--no-engine-process",
        "--ohif",
        "--open",
        "--port",
        "--threads",
    },
    ("info",): {"--json", "--time"},
    ("train",): {
        "--device",
        "--eager",
        "--minutes",
        "--output",
        "--pack",
        "--resume",
        "--seed",
        "--set",
        "--start-from",
        "--steps",
    },
    ("distill",): {
        "--device",
        "--eager",
        "--minutes",
        "--mode",
        "--output",
        "--pack",
        "--recipe",
        "--resume",
        "--seed",
        "--set",
        "--steps",
        "--student",
        "--teacher",
    },
    ("bench",): {
        "--device",
        "--image",
        "--official",
        "--output",
        "--point",
        "--precision",
        "--preset",
        "--reference",
        "--rounds",
        "--threads",
        "--warmup",
    },
    ("finetune",): {
        "--data-licence",
        "--device",
        "--eager",
        "--held-out",
        "--licence",
        "--minutes",
        "--modality",
        "--model",
        "--name",
        "--notes",
        "--output",
        "--pack-only",
        "--resume",
        "--seed",
        "--set",
        "--split",
        "--steps",
        "--validation",
    },
    ("demo",): {"--output-dir"},
    ("evaluate",): {
        "--clicks",
        "--components",
        "--device",
        "--groups",
        "--jobs",
        "--limit",
        "--limit-targets",
        "--min-voxels",
        "--mirrors",
        "--model",
        "--npz-spacing",
        "--output",
        "--policy",
        "--protocol",
        "--regions",
        "--seeds",
        "--split",
        "--subject",
        "--truth",
        "--zero-image",
    },
    ("compare",): {"--json", "--shared"},
    ("results-table",): {"--export", "--write"},
    ("predict-npz",): {"--device", "--force", "--model", "--npz-spacing"},
    ("models", "list"): {"--json"},
    ("models", "info"): {"--json"},
    ("models", "verify"): set[str](),
    ("models", "convert"): {"--decoder-from", "--force", "--residual", "--variant"},
}


@pytest.mark.parametrize("words", OPTIONS)
def test_options_are_frozen(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """A change here is a change of the command line and needs a line in CHANGELOG.md."""
    assert main([*words, "--help"]) == 0
    shown = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out.split("╭", 1)[-1]))

    assert shown == OPTIONS[words]


def test_commands_are_frozen() -> None:
    assert [command.name for command in COMMANDS] == [
        "segment",
        "serve",
        "info",
        "models",
        "export",
        "train",
        "distill",
        "bench",
        "finetune",
        "evaluate",
        "compare",
        "results-table",
        "predict-npz",
        "demo",
    ]


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(command.name in shown and command.help in shown for command in COMMANDS)


def test_no_words_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "segment" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == fastsam3d.__version__


def test_an_unknown_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["segmnt"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "segment" in captured.err


def test_an_interrupt_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastsam3d.cli.demo.find_brain", interrupt)

    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "Interrupted.\n"


def test_the_module_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "fastsam3d", "info", "no-such-file.nii.gz"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
