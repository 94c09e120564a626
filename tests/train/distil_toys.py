"""Small teachers and students of both families, and distillation runs with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from fastsam3d.model.config import FASTSAM3D_6L, SAM_MED3D_B, ModelConfig
from fastsam3d.model.registry import build_model
from fastsam3d.train.bank import TrainingBank
from fastsam3d.train.distill import DistillOptions, Teacher, distill_config, task_factory
from fastsam3d.train.distill_task import DistillRunConfig, DistillTask
from fastsam3d.train.families import Model
from fastsam3d.train.loop import Trainer
from tests.train.toy import SIZE, TOY

HR_TEACHER = replace(TOY, name="hr_b", embed_dim=64, depth=4)
HR_STUDENT = replace(TOY, name="hr_s", embed_dim=48, depth=2)
SAM_TEACHER = replace(SAM_MED3D_B, image_size=SIZE, embed_dim=48, depth=4, num_heads=4, out_dim=48)
SAM_STUDENT = replace(
    FASTSAM3D_6L,
    image_size=SIZE,
    embed_dim=48,
    depth=2,
    num_heads=2,
    out_dim=48,
    patch=replace(FASTSAM3D_6L.patch, num_attention_free_blocks=1),
)

ONE_ROI = (
    "generator.num_real=1",
    "generator.num_painted=0",
    "generator.num_shapes=0",
    "generator.num_targets=1",
)


def build(config: ModelConfig, seed: int) -> Model:
    torch.manual_seed(seed)
    return build_model(config)


def teacher_of(config: ModelConfig) -> Teacher:
    return Teacher(model=build(config, 7).eval(), name="toy", sha256="0" * 64)


def run_config(student: ModelConfig, mode: str, *settings: str) -> DistillRunConfig:
    base = DistillOptions(teacher="toy", student=student.name, mode=mode, recipe="debug", steps=6)
    rates = ("muon_rate=0.01", "adam_rate=0.003", "warmup_steps=1")
    return distill_config(replace(base, settings=(*ONE_ROI, *rates, *settings)))


def trainer_of(
    bank: TrainingBank,
    student: ModelConfig,
    teacher: Teacher,
    config: DistillRunConfig,
    output: Path,
) -> Trainer:
    return Trainer(build(student, 1), bank, config, output=output, make_task=task_factory(teacher))


def task_of(trainer: Trainer) -> DistillTask:
    assert isinstance(trainer.task, DistillTask)
    return trainer.task


def moved(before: dict[str, torch.Tensor], model: torch.nn.Module) -> set[str]:
    """Names of the weights that are no longer what they were."""
    return {n for n, p in model.state_dict().items() if not torch.equal(p, before[n])}


def copy_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}
