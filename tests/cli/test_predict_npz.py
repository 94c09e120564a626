"""`fastsam3d predict-npz` from a challenge file to a challenge file, with toy weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastsam3d.cli.main import main
from tests.cli.weights import write_toy_weights
from tests.eval.test_challenge import LIVER, SPLEEN
from tests.eval.test_folders import write_challenge


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_weights(tmp_path_factory.mktemp("weights") / "toy.safetensors")


def predict(source: Path, target: Path, weights: Path, *words: str) -> int:
    common = ["--model", str(weights), "--device", "cpu"]
    return main(["predict-npz", str(source), str(target), *common, *words])


def test_a_file_is_answered_on_its_own_voxels(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "case.npz", tmp_path / "out" / "case.npz"
    target.parent.mkdir()
    clicks = [{"fg": [[4, 5, 5]], "bg": [[9, 15, 17]]}, {"fg": [[4, 8, 13]], "bg": []}]
    previous = np.zeros((10, 16, 18), np.uint8)
    write_challenge(source, gts=None, boxes=[LIVER, SPLEEN], clicks=clicks, prev_pred=previous)
    assert predict(source, target, weights) == 0
    with np.load(target) as found:
        assert list(found) == ["segs"]
        segs = found["segs"]
    assert segs.shape == (10, 16, 18)
    assert segs.dtype == np.uint8
    assert set(np.unique(segs)) <= {0, 1, 2}
    assert segs.any()
    sizes = ", ".join(str(int((segs == value).sum())) for value in (1, 2))
    assert capsys.readouterr().out == f"Labels: {target} (voxels per class: {sizes})\n"
    assert [path.name for path in target.parent.iterdir()] == ["case.npz"]


def test_the_truth_in_a_file_is_not_looked_at(tmp_path: Path, weights: Path) -> None:
    answers: list[bytes] = []
    shuffled = np.random.default_rng(0).integers(0, 9, (10, 16, 18)).astype(np.uint8)
    for number, truth in enumerate((None, shuffled)):
        source, target = tmp_path / f"in{number}.npz", tmp_path / f"out{number}.npz"
        write_challenge(source, gts=truth, boxes=[LIVER])
        assert predict(source, target, weights) == 0
        with np.load(target) as found:
            answers.append(found["segs"].tobytes())
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["in.npz", "out.nii.gz"], 2, "TARGET is a .npz file"),
        (["in.npz", "absent/out.npz"], 1, "does not exist"),
        (["in.npz", "in.npz"], 1, "the input itself"),
        (["in.npz", "old.npz"], 1, "add --force"),
        (["absent.npz", "out.npz"], 1, "does not exist"),
        (["bad.npz", "out.npz"], 1, "lacks imgs"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_writes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_challenge(tmp_path / "in.npz", boxes=[LIVER])
    write_challenge(tmp_path / "bad.npz", imgs=None)
    (tmp_path / "old.npz").write_bytes(b"old")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(["predict-npz", *words]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_existing_file_is_replaced_only_by_force(tmp_path: Path, weights: Path) -> None:
    source, target = tmp_path / "in.npz", tmp_path / "out.npz"
    write_challenge(source)
    target.write_bytes(b"old")
    assert predict(source, target, weights, "--force") == 0
    with np.load(target) as found:
        assert not found["segs"].any()


def test_a_disk_that_refuses_is_told(
    tmp_path: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    write_challenge(tmp_path / "in.npz")
    monkeypatch.setattr(np, "savez_compressed", refuse)
    assert predict(tmp_path / "in.npz", tmp_path / "out.npz", weights) == 1
    assert "No space left" in capsys.readouterr().err
    assert not (tmp_path / "out.npz").exists()
