"""Packaging: a finished run becomes a weights file that loads, with a card that names its data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastsam3d.model.card import WeightsCard
from fastsam3d.model.checkpoint import load_state
from fastsam3d.model.config import MODEL_CONFIGS
from fastsam3d.model.registry import load_model
from fastsam3d.train.bank import TrainingBank
from fastsam3d.train.config import recipe
from fastsam3d.train.loop import Trainer
from fastsam3d.train.overrides import override
from fastsam3d.train.package import main, package
from tests.train.toy import TOY, toy_case, toy_model

SOURCES = [
    {"case": "clinic__a", "source": "clinic", "modality": "CT", "licence": "CC0"},
    {"case": "clinic__b", "source": "clinic", "modality": "CT", "licence": "CC0"},
    {"case": "atlas__c", "source": "atlas", "modality": "MR", "licence": "CC-BY-4.0"},
]


@pytest.fixture
def run(tmp_path: Path, pack: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    monkeypatch.setitem(MODEL_CONFIGS, "toy", replace(TOY, name="toy"))
    bank = TrainingBank([toy_case(2, has_image=False)], device="cpu")
    config = replace(recipe("debug"), model="toy")
    facts = {"data_sha256": hashlib.sha256(pack.read_bytes()).hexdigest()}
    trainer = Trainer(toy_model(), bank, config, output=tmp_path, facts=facts)
    trainer.export()
    return trainer


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    return write_index(tmp_path / "train_pack.npz", b"voxels are not read")


def write_index(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    index = {
        "format": 1,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "cases": SOURCES,
    }
    path.with_suffix(".json").write_text(json.dumps(index), encoding="utf-8")
    return path


def test_packaged_weights_are_the_averaged_ones(run: Trainer, pack: Path, tmp_path: Path) -> None:
    output = tmp_path / "toy.safetensors"
    package(run.output, output, pack=pack, int8=False, notes="")
    model = load_model(output)
    assert not model.training
    for name, average in run.ema_state().items():
        assert torch.equal(model.state_dict()[name], average.half().float())


def test_card_lists_sources_with_licences_and_the_architecture(
    run: Trainer, pack: Path, tmp_path: Path
) -> None:
    output = tmp_path / "toy.safetensors"
    written = package(run.output, output, pack=pack, int8=False, notes="a toy")
    _, card = load_state(output)
    assert card == written
    assert card.training_data == (
        "synthetic shapes and painted label maps (generated)",
        "atlas (MR): 1 cases, CC-BY-4.0",
        "clinic (CT): 2 cases, CC0",
    )
    assert card.architecture == MODEL_CONFIGS["toy"]
    assert (card.quantisation, card.notes) == ("none", "a toy")


@pytest.fixture
def card_of(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., WeightsCard]:
    """Return what packages a run that has ended before its first step, by its settings."""
    monkeypatch.setitem(MODEL_CONFIGS, "toy", replace(TOY, name="toy"))
    facts = {"data_sha256": hashlib.sha256(pack.read_bytes()).hexdigest()}
    bank = TrainingBank([toy_case(2, has_image=False)], device="cpu")

    def make(*settings: str, start: WeightsCard | None = None) -> WeightsCard:
        config = override(replace(recipe("debug"), model="toy"), settings)
        Trainer(toy_model(), bank, config, output=tmp_path, facts=facts).export()
        return package(tmp_path, tmp_path / "w.safetensors", pack=pack, start=start)

    return make


def test_card_says_how_many_points_of_a_scribble_the_run_trained_at_once(card_of) -> None:
    for share, points in ((0.0, 1), (0.1, 5)):
        card = card_of(f"prompts.share_scribble={share}")
        assert card.preprocessing.scribble_points == points


def test_card_asks_for_ct_windows_where_the_run_has_shown_them(card_of) -> None:
    shown = card_of("generator.degrade.share_window=0.35")
    hidden = "generator.degrade.share_window=0.0"
    assert shown.preprocessing.ct_window_hu == 150.0
    assert card_of(hidden).preprocessing.ct_window_hu is None
    focused = card_of(hidden, "generator.degrade.share_focus=0.5")
    assert focused.preprocessing.ct_window_hu == 150.0
    assert card_of(hidden, start=shown).preprocessing.ct_window_hu == 150.0


def test_fine_tuned_weights_keep_the_sources_and_spacings_that_they_began_with(
    run: Trainer, pack: Path, tmp_path: Path
) -> None:
    first = package(run.output, tmp_path / "toy.safetensors", pack=pack)
    start = replace(
        first,
        training_data=("earlier (MR): 3 cases, CC0", first.training_data[0]),
        preprocessing=replace(first.preprocessing, spacings_mm=(0.7, 1.4)),
    )
    tuned = package(
        run.output,
        tmp_path / "tuned.safetensors",
        pack=pack,
        name="tuned",
        licence="CC-BY-SA-4.0",
        start=start,
    )
    assert (tuned.name, tuned.licence) == ("tuned", "CC-BY-SA-4.0")
    assert tuned.preprocessing.spacings_mm == (0.7, 1.4)
    assert tuned.training_data == (*start.training_data, *first.training_data[1:])


def test_a_pack_that_the_run_was_not_trained_on_is_refused(
    run: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_index(tmp_path / "other.npz", b"other voxels")
    assert main([str(run.output), str(tmp_path / "x.safetensors"), "--pack", str(other)]) == 1
    message = capsys.readouterr().err
    assert "other.npz has" in message
    assert "give the pack that the run was trained on" in message
    assert not (tmp_path / "x.safetensors").exists()


def test_command_line_writes_int8_weights_close_to_the_run(
    run: Trainer, pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "toy.safetensors"
    assert main([str(run.output), str(output), "--pack", str(pack), "--int8"]) == 0
    state, card = load_state(output)
    assert card.quantisation == "int8"
    assert card.sha256 in capsys.readouterr().out
    for name, average in run.ema_state().items():
        torch.testing.assert_close(state[name].float(), average, atol=0.02, rtol=0)


def test_folder_without_averaged_weights_is_refused_in_a_sentence(
    pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tmp_path / "none"), str(tmp_path / "x.safetensors"), "--pack", str(pack)]
    assert main(arguments) == 1
    assert "No checkpoint was found" in capsys.readouterr().err
