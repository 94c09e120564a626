"""What the documents tell people to type works as written."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from fastsam3d import Session, read_mask
from fastsam3d.cli.main import build_app
from fastsam3d.io import write_volume
from fastsam3d.volume import Geometry, Volume
from tests.cli.weights import write_toy_weights

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    shell = "\n".join(block for document in DOCUMENTS for block in blocks(document, "sh"))
    return [line for line in shell.splitlines() if line.startswith("fastsam3d ")]


def test_there_are_commands_to_check() -> None:
    assert len(commands()) >= 10


@pytest.mark.parametrize("line", commands())
def test_every_command_in_the_documents_parses(line: str) -> None:
    words = shlex.split(line.partition("#")[0])[1:]

    build_app().parse_args(words, exit_on_error=False, print_error=False)


def test_every_record_that_the_documents_name_is_there() -> None:
    named = {
        (document.name, path)
        for document in DOCUMENTS
        for path in re.findall(r"`(benchmarks/[\w-]+\.\w+)`", document.read_text())
    }
    assert len(named) > 20
    assert not sorted(entry for entry in named if not (ROOT / entry[1]).is_file())


def test_the_readme_has_its_two_commands_and_they_exist() -> None:
    (setup,) = [text for text in blocks(ROOT / "README.md", "sh") if "make demo  " in text]
    words = [line.split()[1] for line in setup.splitlines()]

    assert words == ["demo", "test"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{word}:", makefile, re.MULTILINE) for word in words)


def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = blocks(ROOT / "README.md", "python")
    load = Session.from_pretrained
    weights = write_toy_weights(tmp_path / "toy.safetensors")
    monkeypatch.setattr(Session, "from_pretrained", lambda _: load(weights, device="cpu"))
    monkeypatch.chdir(tmp_path)
    affine = np.diag([1.0, 1.0, 1.5, 1.0])
    affine[:3, 3] = (-140.0, -60.0, 20.0)
    array = np.random.default_rng(5).normal(0, 100, (160, 120, 60)).astype(np.int16)
    write_volume(Volume(array, Geometry(array.shape, affine)), Path("ct.nii.gz"))

    exec(compile(code, "README.md", "exec"), {})  # noqa: S102 - our own words

    assert read_mask("liver.nii.gz").geometry.shape == array.shape
    assert re.match(r"[\d.]+ \(", capsys.readouterr().out)
