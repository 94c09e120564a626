"""Distillation: every mode learns, moves what it should and nothing else, and can be resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastsam3d.cli.main import main as fastsam3d
from fastsam3d.errors import CheckpointError, ConfigError
from fastsam3d.model.config import MODEL_CONFIGS, ModelConfig
from fastsam3d.train import rehearsal
from fastsam3d.train.bank import TrainingBank
from fastsam3d.train.distill import (
    DistillOptions,
    build_distillation,
    check_pair,
    distil,
    distill_config,
    load_teacher,
    main,
    mode_config,
)
from fastsam3d.train.distill_task import transplant
from fastsam3d.train.families import family_of
from fastsam3d.train.launch import Process
from fastsam3d.train.loop import Trainer
from fastsam3d.train.rehearsal import Timing, steps_for_minutes
from fastsam3d.train.rendering import TrainingBatch
from fastsam3d.train.state import load_state, save_state
from fastsam3d.train.task import Losses
from tests.train.distil_toys import (
    HR_STUDENT,
    HR_TEACHER,
    ONE_ROI,
    SAM_STUDENT,
    SAM_TEACHER,
    build,
    copy_of,
    moved,
    run_config,
    task_of,
    teacher_of,
    trainer_of,
)
from tests.train.toy import toy_case

CPU = Process(device=torch.device("cpu"))
FAMILIES = {"hr": (HR_TEACHER, HR_STUDENT), "sam": (SAM_TEACHER, SAM_STUDENT)}
STAGES = {"layers": 0, "neck": 3, "decoder": 5}  # of six steps with these shares
SHARES = ("distill.layers_share=0.5", "distill.neck_share=0.25")


@pytest.fixture(scope="module")
def bank() -> TrainingBank:
    return TrainingBank([toy_case(0)], device="cpu")


@pytest.fixture(scope="module")
def batch() -> TrainingBatch:
    """One ROI with a bright ball in its centre, always the same."""
    axis = torch.arange(32) - 16
    ball = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2 < 64
    torch.manual_seed(0)
    image = 2.0 * ball + 0.3 * torch.randn(ball.shape)
    return TrainingBatch(image[None, None], ball[None, None], torch.ones(1, 1))


def learn(
    trainer: Trainer, batch: TrainingBatch, steps: int, *, num_rounds: int = 0
) -> list[Losses]:
    """Take steps at the present place of the schedule."""
    trainer.num_steps = 6
    curve: list[Losses] = []
    for _ in range(steps):
        torch.manual_seed(0)
        curve.append(trainer.learn(batch, num_rounds))
    return curve


def groups(names: set[str]) -> set[str]:
    """Which parts of a model have names among these: block0, stem, neck, prompts, masks."""
    found: set[str] = set()
    for name in names:
        if "blocks." in name and "decoder" not in name:
            found.add("block" + name.split("blocks.")[1].split(".")[0])
        elif "prompt" in name or name.startswith(("decoder.position.", "decoder.kinds.")):
            found.add("prompts")
        elif "decoder" in name:
            found.add("masks")
        elif "neck" in name or name.startswith("encoder.norm."):
            found.add("neck")
        elif "trunk.position" in name or "patch_embed" in name or "pos_embed" in name:
            found.add("embedding")
        else:
            found.add("down16" if "down16.conv" in name else "stem")
    return found


EMBEDDING = {"hr": {"embedding", "down16"}, "sam": {"embedding"}}
STEM = {"hr": {"stem"}, "sam": set[str]()}
LEARNS = {
    ("progressive", "layers"): {"block0"},
    ("all_layers", "layers"): {"block0", "block1"},
    ("progressive", "neck"): {"block0", "block1", "neck"},
    ("output_only", "neck"): {"block0", "block1", "neck"},
    ("progressive", "decoder"): {"block0", "block1", "neck", "masks"},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("mode", "kind"), LEARNS)
def test_each_stage_learns_and_moves_its_own_parts_only(
    family: str, mode: str, kind: str, bank: TrainingBank, batch: TrainingBatch, tmp_path: Path
) -> None:
    teacher, student = FAMILIES[family]
    guide = teacher_of(teacher)
    trainer = trainer_of(bank, student, guide, run_config(student, mode, *SHARES), tmp_path)
    trainer.step = STAGES[kind]
    before, frozen = copy_of(trainer.model), copy_of(guide.model)
    curve = learn(trainer, batch, 4)
    assert curve[-1]["loss"] < curve[0]["loss"]
    expected = LEARNS[mode, kind] | EMBEDDING[family]
    expected |= STEM[family] if kind == "decoder" else set()
    assert groups(moved(before, trainer.model)) == expected
    assert not moved(frozen, guide.model)
    assert not any(p.requires_grad for p in guide.model.parameters())


def test_copied_blocks_go_on_learning_from_the_output_alone(
    bank: TrainingBank, batch: TrainingBatch, tmp_path: Path
) -> None:
    config = run_config(SAM_STUDENT, "copy_then_output", *SHARES)
    trainer = trainer_of(bank, SAM_STUDENT, teacher_of(SAM_TEACHER), config, tmp_path)
    trainer.step = STAGES["neck"]
    before = copy_of(trainer.model)
    curve = learn(trainer, batch, 4)
    assert curve[-1]["loss"] < curve[0]["loss"]
    assert "layers_loss" not in curve[0]
    learnt = {"block0", "block1", "neck", "embedding"}
    assert groups(moved(before, trainer.model)) == learnt


@pytest.mark.parametrize("student", [HR_STUDENT, SAM_STUDENT])
def test_from_scratch_learns_everything_from_the_truth(
    student: ModelConfig, bank: TrainingBank, batch: TrainingBatch, tmp_path: Path
) -> None:
    model = build(student, 1)
    trainer = Trainer(model, bank, run_config(student, "from_scratch"), output=tmp_path)
    before = copy_of(model)
    curve = learn(trainer, batch, 4, num_rounds=1)
    assert curve[-1]["loss"] < curve[0]["loss"]
    assert moved(before, model) == {name for name, _ in model.named_parameters()}


def test_errors_are_logged_per_active_layer(
    bank: TrainingBank, batch: TrainingBatch, tmp_path: Path
) -> None:
    config = run_config(HR_STUDENT, "progressive", *SHARES)
    trainer = trainer_of(bank, HR_STUDENT, teacher_of(HR_TEACHER), config, tmp_path)
    names: list[set[str]] = []
    for trainer.step in (0, 2, 3):
        names.append({n for n in learn(trainer, batch, 1)[0] if n.endswith("_error")})
    layers = {"layer1_error", "layer2_error"}
    assert names == [{"layer1_error"}, layers, {*layers, "neck_error"}]


def test_other_widths_are_bridged_by_projections_that_are_not_exported(
    bank: TrainingBank, batch: TrainingBatch, tmp_path: Path
) -> None:
    config = run_config(HR_STUDENT, "progressive", *SHARES)
    trainer = trainer_of(bank, HR_STUDENT, teacher_of(HR_TEACHER), config, tmp_path)
    bridge = task_of(trainer).projections["layer1"].weight
    start = bridge.detach().clone()
    learn(trainer, batch, 1)
    assert bridge.shape == (64, 48)
    assert not torch.equal(start, bridge)
    trainer.save()
    trainer.export()
    assert "model.projections.layer1.weight" in load_state(tmp_path / "checkpoint")[0]
    assert set(load_state(tmp_path / "averaged")[0]) == set(trainer.model.state_dict())
    same = replace(HR_STUDENT, embed_dim=64)
    trainer = trainer_of(bank, same, teacher_of(HR_TEACHER), config, tmp_path)
    assert not task_of(trainer).projections


def test_neck_of_another_width_is_projected_and_its_decoder_is_the_students_own(
    bank: TrainingBank, batch: TrainingBatch, tmp_path: Path
) -> None:
    thin = replace(SAM_STUDENT, out_dim=96)
    config = run_config(thin, "output_only", *SHARES)
    trainer = trainer_of(bank, thin, teacher_of(SAM_TEACHER), config, tmp_path)
    trainer.step = STAGES["neck"]
    curve = learn(trainer, batch, 4)
    assert curve[-1]["neck_loss"] < curve[0]["neck_loss"]
    trainer.step = STAGES["decoder"]
    before = copy_of(trainer.model)
    learn(trainer, batch, 1)
    assert "prompts" in groups(moved(before, trainer.model))  # nothing there was the teacher's


def test_what_fits_is_copied_and_blocks_on_request() -> None:
    teacher, student = family_of(build(SAM_TEACHER, 3)), family_of(build(SAM_STUDENT, 4))
    copied = transplant(student, teacher, copies_blocks=False)
    assert groups(set(copied)) == {"embedding", "neck", "prompts", "masks"}
    assert "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix" in copied
    copied = transplant(student, teacher, copies_blocks=True)
    own, given = student.model.state_dict(), teacher.model.state_dict()
    for mine, theirs in ((0, 1), (1, 3)):
        name = "image_encoder.blocks.{}.mlp.lin1.weight"
        assert torch.equal(own[name.format(mine)], given[name.format(theirs)])
    assert not any("rel_pos" in name for name in copied)  # windows of another size, other heads


def test_blocks_of_another_width_cannot_be_copied() -> None:
    with pytest.raises(ConfigError, match="64 wide and the student's 48, so they cannot be"):
        transplant(
            family_of(build(HR_STUDENT, 0)), family_of(build(HR_TEACHER, 0)), copies_blocks=True
        )


def test_teacher_that_is_wrong_about_a_target_is_not_imitated(
    bank: TrainingBank, batch: TrainingBatch, tmp_path: Path
) -> None:
    config = run_config(HR_STUDENT, "progressive", *SHARES, "distill.min_teacher_dice=1.0")
    trainer = trainer_of(bank, HR_STUDENT, teacher_of(HR_TEACHER), config, tmp_path)
    trainer.step = STAGES["decoder"]
    assert learn(trainer, batch, 1)[0]["mask_loss"] == 0
    config = run_config(HR_STUDENT, "progressive", *SHARES, "distill.min_teacher_dice=-1")
    trainer = trainer_of(bank, HR_STUDENT, teacher_of(HR_TEACHER), config, tmp_path)
    trainer.step = STAGES["decoder"]
    losses = learn(trainer, batch, 1)[0]
    assert losses["trusted_share"] == 1
    assert losses["mask_loss"] > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_interrupted_distillation_equals_an_unbroken_one(
    family: str, bank: TrainingBank, tmp_path: Path
) -> None:
    teacher, student = FAMILIES[family]
    settings = ("distill.layers_share=0.7", "distill.neck_share=0", "num_steps=3")
    config = run_config(student, "progressive", *settings, "prompts.round_shares=0,1")
    whole = trainer_of(bank, student, teacher_of(teacher), config, tmp_path / "whole")
    whole.fit()
    first = trainer_of(bank, student, teacher_of(teacher), config, tmp_path / "broken")
    first.train_step(first.draw_for_step(0), first.num_rounds(0))
    first.step = 1
    first.save()
    second = trainer_of(bank, student, teacher_of(teacher), config, tmp_path / "broken")
    with torch.no_grad():
        for tensor in second.model.state_dict().values():
            tensor.zero_()  # whatever it starts with, the checkpoint counts
    second.resume(tmp_path / "broken" / "checkpoint")
    second.fit()
    ours, theirs = second.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert all(torch.equal(a, b) for a, b in zip(second.ema, whole.ema, strict=True))


# -- whole runs from the command line --------------------------------------------------------------


@pytest.fixture
def tiny_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Small variants under their usual names; the averaged folder of a teacher's run."""
    for config in (HR_TEACHER, HR_STUDENT, SAM_TEACHER, SAM_STUDENT):
        monkeypatch.setitem(MODEL_CONFIGS, config.name, replace(config, image_size=128))
    monkeypatch.setattr("fastsam3d.train.launch.load_pack", lambda _: [toy_case(0)])
    monkeypatch.setattr("fastsam3d.train.launch.read_index", lambda _: {"sha256": "0" * 64})
    return write_teacher(tmp_path / "teacher" / "averaged", HR_TEACHER)


def write_teacher(folder: Path, config: ModelConfig, *, size: int = 32) -> Path:
    facts = {"config": {"model": config.name, "generator": {"size": size}}}
    model = build(replace(config, image_size=size), 5)
    save_state(folder, dict(model.state_dict()), facts)
    return folder


def options(teacher: Path, **changes: object) -> DistillOptions:
    base = DistillOptions(
        teacher=str(teacher), recipe="debug", device="cpu", steps=1, settings=ONE_ROI
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def test_run_records_teacher_and_mode_and_refuses_others(tiny_world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    distil(options(tiny_world), pack=Path("toy.npz"), output=run)
    record = json.loads((run / "run.json").read_text())
    assert record["facts"]["teacher"] == "teacher/averaged"
    assert len(record["facts"]["teacher_sha256"]) == 64
    assert record["config"]["distill"]["mode"] == "progressive"
    with pytest.raises(ConfigError, match="holds a run; resume it"):
        distil(options(tiny_world), pack=Path("toy.npz"), output=run)
    other = options(tiny_world, mode="all_layers", resume=True)
    with pytest.raises(CheckpointError, match="other settings of distill"):
        distil(other, pack=Path("toy.npz"), output=run)


@pytest.mark.usefixtures("tiny_world")
def test_student_without_teacher_is_trained_on_the_truth(tmp_path: Path) -> None:
    words = ["distill", "--student", "hr_s", "--mode", "from_scratch", "--recipe", "debug"]
    words += ["--pack", "toy.npz", "-o", str(tmp_path / "run"), "--device", "cpu", "--steps", "1"]
    words += [f"--set={setting}" for setting in (*ONE_ROI, "depth=1")]
    assert fastsam3d(words) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["facts"]["teacher_sha256"] is None
    tensors, _ = load_state(tmp_path / "run" / "averaged")
    assert not any("trunk.blocks.1." in name for name in tensors)


def test_minutes_become_steps_and_the_rehearsal_leaves_no_trace(
    tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "UNTIMED", 1)
    monkeypatch.setattr(rehearsal, "TIMED", 1)
    timed = options(tiny_world, steps=None, minutes=1.0, settings=(*ONE_ROI, "num_steps=none"))
    a, b = (
        build_distillation(given, CPU, pack=Path("toy.npz"), output=tmp_path / "run")
        for given in (timed, options(tiny_world))
    )
    assert a.num_steps is not None
    assert a.num_steps > 5
    assert set(a.facts["seconds_per_step"]) == {"layers1", "layers2", "neck", "decoder"}
    assert a.step == 0
    assert not any(optimiser.state for optimiser in a.optimisers)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters, b.parameters, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(a.ema, b.ema, strict=True))


def test_stages_count_by_their_share_of_the_steps() -> None:
    timings = [
        Timing(label="layers1", share=0.25, seconds=0.1),
        Timing(label="decoder", share=0.75, seconds=0.5),
    ]
    assert steps_for_minutes(timings, 4.0, CPU) == int(0.97 * 240 / 0.4)


def test_bad_pairs_say_what_to_do(tiny_world: Path, tmp_path: Path) -> None:
    config = distill_config(options(tiny_world))
    with pytest.raises(ConfigError, match="family 'sam_med3d' and the student hr_s of 'hr'"):
        check_pair(build(SAM_TEACHER, 0), config)
    with pytest.raises(ConfigError, match=r"ROIs of 64 voxels .* set generator\.size=64"):
        check_pair(build(replace(HR_TEACHER, image_size=64), 0), config)
    with pytest.raises(ConfigError, match="2 trunk blocks and its teacher 1; take a deeper"):
        check_pair(build(replace(HR_TEACHER, depth=1), 0), config)
    with pytest.raises(ConfigError, match="Mode progressive needs a teacher"):
        distill_config(DistillOptions(student="hr_s"))
    with pytest.raises(ConfigError, match=r"must be one of progressive, .* got 'gradual'"):
        mode_config("gradual")
    thin = write_teacher(tmp_path / "thin", replace(HR_TEACHER, depth=3))
    with pytest.raises(CheckpointError, match="does not fit its architecture"):
        load_teacher(str(thin), torch.device("cpu"))


@pytest.mark.usefixtures("tiny_world")
def test_lean_command_runs_and_reports_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = write_teacher(tmp_path / "sam", SAM_TEACHER)
    words = ["--teacher", str(teacher), "--student", "fastsam3d_6l", "--pack", "toy.npz"]
    words += ["--output", str(tmp_path / "run"), "--recipe", "debug", "--device", "cpu"]
    words += ["--steps", "1", *(f"--set={setting}" for setting in ONE_ROI)]
    assert main([*words, "--mode", "copy_then_output"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 1
    assert main([*words, "--mode", "gradual", "--resume"]) == 1
    assert "Mode must be one of" in capsys.readouterr().err
