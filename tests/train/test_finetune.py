"""Fine-tuning: given weights go in, trained ones with an honest card come out, on any machine."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastsam3d.cli.main import main as fastsam3d
from fastsam3d.errors import ConfigError
from fastsam3d.model.checkpoint import load_state
from fastsam3d.model.config import MODEL_CONFIGS
from fastsam3d.session import Session
from fastsam3d.train.finetune import FinetuneOptions, finetune, finetune_config, main, start_card
from fastsam3d.train.finetune_cases import CaseOptions, prepare_cases
from fastsam3d.train.held_out import comparison_table
from fastsam3d.train.launch import Process
from fastsam3d.train.loop import Trainer
from fastsam3d.train.runlog import read_log
from tests.train.folders import write_case, write_start
from tests.train.toy import TOY

SMALL = ("generator.num_real=1", "generator.num_painted=0", "save_every=1")
UNWANTED = ("SimpleITK", "cyclopts", "rich", "edt", "cc3d", "skimage", "pydicom", "tensorboard")


@pytest.fixture(autouse=True)
def tiny_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODEL_CONFIGS, "hr_s", replace(TOY, image_size=128))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cases")
    for seed in range(3):
        write_case(root / f"patient{seed}", seed)
    return root


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_start(tmp_path_factory.mktemp("start") / "toy.safetensors")


@pytest.fixture(scope="module")
def pack(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = CaseOptions(licence="CC-BY-4.0", modality="MR")
    return prepare_cases(folder, tmp_path_factory.mktemp("pack"), options).pack


def options(start: Path, **changes: object) -> FinetuneOptions:
    base = FinetuneOptions(model=str(start), device="cpu", steps=3, settings=SMALL)
    return replace(base, **changes)  # type: ignore[arg-type]


def test_new_weights_load_and_their_card_tells_where_they_come_from(
    pack: Path, start: Path, tmp_path: Path
) -> None:
    weights = finetune(pack, tmp_path, options(start, steps=1, name="ball", licence="MIT"))
    assert weights == tmp_path / "ball.safetensors"
    state, card = load_state(weights)
    before, old_card = load_state(start)
    assert any(not torch.equal(state[name].float(), before[name]) for name in before)
    assert (card.name, card.licence) == ("ball", "MIT")
    assert card.training_data[0] == old_card.training_data[0]
    assert any("CC-BY-4.0" in line and "(MR): 2 cases" in line for line in card.training_data)
    assert card.preprocessing == old_card.preprocessing
    assert old_card.sha256[:12] in card.notes
    Session.from_pretrained(weights, device="cpu")


def stop_after_two_steps(trainer: Trainer, _: Process) -> None:
    whole = trainer.train_step

    def step(*arguments: object) -> object:
        if trainer.step == 2:
            raise KeyboardInterrupt
        return whole(*arguments)  # type: ignore[arg-type]

    trainer.train_step = step  # type: ignore[method-assign,assignment]
    trainer.fit()


def test_interrupted_fine_tuning_equals_an_unbroken_one(
    pack: Path, start: Path, tmp_path: Path
) -> None:
    whole = finetune(pack, tmp_path / "whole", options(start))
    with pytest.raises(KeyboardInterrupt):
        finetune(pack, tmp_path / "broken", options(start), fit=stop_after_two_steps)
    with pytest.raises(ConfigError, match="holds a run; resume it or choose another folder"):
        finetune(pack, tmp_path / "broken", options(start))
    resumed = finetune(pack, tmp_path / "broken", options(start, resume=True))
    assert whole is not None
    assert resumed is not None
    assert resumed.read_bytes() == whole.read_bytes()
    logs = [read_log(tmp_path / name / "run/log.jsonl") for name in ("whole", "broken")]
    curves = [[(line["step"], line["loss"]) for line in log] for log in logs]
    assert curves[0] == curves[1]
    assert len(curves[0]) == 3


def test_a_cpu_gets_small_batches_and_every_run_mostly_real_images(start: Path) -> None:
    architecture = start_card(options(start)).architecture
    cpu, gpu = (finetune_config(architecture, FinetuneOptions(), on_gpu=g) for g in (False, True))
    assert cpu.generator.batch_size < gpu.generator.batch_size
    assert min(c.generator.num_real / c.generator.batch_size for c in (cpu, gpu)) >= 0.75
    assert cpu.muon_rate == gpu.muon_rate < 0.01
    assert not gpu.compile
    assert finetune_config(architecture, FinetuneOptions(minutes=60.0), on_gpu=True).compile


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"name": "a/b"}, "letters, digits"), ({"steps": 0}, "at least one step, got 0")],
)
def test_impossible_options_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(FinetuneOptions(), **changes)  # type: ignore[arg-type]


def test_module_measures_unseen_cases_before_and_after(
    pack: Path, start: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--pack", str(pack), "--output", str(tmp_path), "--model", str(start)]
    words += ["--device", "cpu", "--steps", "1", "--validation", str(folder), "--commit", "abc"]
    assert main([*words, *(w for s in SMALL for w in ("--set", s))]) == 0
    shown = capsys.readouterr().out
    content = json.loads((tmp_path / "held_out.json").read_text())
    assert content["provenance"]["commit"] == "abc"
    assert "--steps 1" in content["provenance"]["command"]
    assert content["before"]["sha256"] == start_card(options(start)).sha256
    assert content["before"]["num_targets"] == len(content["before"]["rows"]) / 5 == 3
    assert comparison_table(content["before"], content["after"]) in shown


def test_module_refuses_in_a_sentence(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--pack", str(tmp_path / "none.npz"), "--output", str(tmp_path), "--device", "cpu"]
    assert main([*words, "--model", str(start)]) == 1
    assert "none.npz is missing; write the pack first" in capsys.readouterr().err


def test_table_shows_each_structure_and_the_mean() -> None:
    before = {
        "dice": [0.1, 0.2, 0.3, 0.4, 0.5],
        "by_structure": {"ball": [0.1, 0.2, 0.3, 0.4, 0.5]},
        "num_targets": 4,
    }
    after = {**before, "dice": [0.6] * 5}
    lines = comparison_table(before, after).splitlines()
    words = [" ".join(line.split()) for line in lines]
    assert words[1] == "ball 0.100 -> 0.100 0.300 -> 0.300 0.500 -> 0.500"
    assert words[2] == "mean 0.100 -> 0.600 0.300 -> 0.600 0.500 -> 0.600"


def test_command_packs_trains_and_measures(
    folder: Path, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["finetune", str(folder), "-o", str(tmp_path), "--model", str(start)]
    words += ["--device", "cpu", "--steps", "1", "--name", "ball", "--data-licence", "CC0"]
    assert fastsam3d([*words, *(w for s in SMALL for w in ("--set", s))]) == 0
    shown = capsys.readouterr().out
    assert "2 cases to train on, 1 held out" in shown
    assert "Dice@1" in shown
    assert (tmp_path / "held_out.json").is_file()
    assert fastsam3d(["models", "verify", str(tmp_path / "ball.safetensors")]) == 0


def test_command_can_stop_after_the_pack(
    folder: Path, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["finetune", str(folder), "-o", str(tmp_path), "--model", str(start), "--pack-only"]
    assert fastsam3d(words) == 0
    assert "finetune_pack.npz" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_command_tells_what_is_wrong_before_any_work(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["finetune", str(folder), "-o", str(tmp_path / "out")]
    assert fastsam3d([*words, "--model", "hr_x"]) == 1
    assert "No model is called 'hr_x'" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert fastsam3d(words) == 2
    assert "Write the pack first with --pack-only" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_training_machines_need_no_readers_and_no_terminal() -> None:
    code = (
        "import sys, fastsam3d.train.finetune\n"
        f"print([m for m in {UNWANTED!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
