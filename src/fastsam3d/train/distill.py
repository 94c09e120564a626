"""Distil a student: ``python -m fastsam3d.train.distill --teacher T --student S --pack P ...``.

The same trainer, generator and prompts as any training. Needs torch, numpy, scipy and safetensors
only; runs under torchrun as well.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import torch

from fastsam3d.errors import CheckpointError, ConfigError, FastSAM3DError
from fastsam3d.model.checkpoint import check_fit
from fastsam3d.model.hr import HighResSam3D
from fastsam3d.model.registry import build_model, load_card, load_model
from fastsam3d.train.config import RunConfig, architecture_of, recipe
from fastsam3d.train.distill_task import (
    DistillConfig,
    DistillRunConfig,
    DistillTask,
    transplant,
)
from fastsam3d.train.families import Model, family_of
from fastsam3d.train.launch import Process, build_trainer, check_output, training_process
from fastsam3d.train.loop import CHECKPOINT, TaskFactory, Trainer
from fastsam3d.train.overrides import override
from fastsam3d.train.rehearsal import rehearse, steps_for_minutes
from fastsam3d.train.rendering import Wrap
from fastsam3d.train.state import MANIFEST, load_state, read_facts
from fastsam3d.train.task import Task

Fit = Callable[[Trainer, Process], None]


@dataclass(frozen=True, kw_only=True)
class DistillOptions:
    """Which teacher, which student, for how long.

    Attributes:
        teacher: Name of shipped weights, a ``.safetensors`` file, or the ``averaged`` folder of a
            run. Mode ``from_scratch`` needs none.
        student: Registry name of the student's variant.
        mode: See `mode_config`.
        recipe: Whose generator, prompts and rates are used.
        device: ``cpu``, ``cuda`` or ``auto``.
        minutes: Wall clock of the training loop, used when `steps` is None.
        steps: Steps of the run.
        seed: Of weights, drawing and rendering.
        resume: Go on from the run's checkpoint, to the length planned then.
        settings: Changes of the run's config, such as ``distill.neck_loss.mse=1``.
    """

    teacher: str = ""
    student: str = "hr_s"
    mode: str = "progressive"
    recipe: str = "default"
    device: str = "auto"
    minutes: float = 10.0
    steps: int | None = None
    seed: int = 1
    resume: bool = False
    settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"A run needs at least one step, got {self.steps}.")


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A trained model and what identifies it.

    Attributes:
        model: In evaluation mode.
        name: Of its weights.
        sha256: Of its weights; of the manifest, for the folder of a run.
    """

    model: Model
    name: str
    sha256: str


def mode_config(mode: str) -> DistillConfig:
    """Return the settings of a way to distil.

    Args:
        mode: ``progressive`` (the paper: layers join one by one, then neck, then decoder),
            ``all_layers`` (all layers at once), ``output_only`` (neck, then decoder: what the
            paper's published code does), ``copy_then_output`` (the same from a student whose
            blocks are the teacher's), ``from_scratch`` (no teacher).

    Raises:
        ConfigError: There is no such mode.
    """
    base = DistillConfig(mode=mode)
    output_only = replace(base, layers_share=0.0, neck_share=base.layers_share + base.neck_share)
    output_only = replace(output_only, kept_layers=0.0)
    modes: dict[str, DistillConfig] = {
        "progressive": base,
        "all_layers": replace(base, is_progressive=False),
        "output_only": output_only,
        "copy_then_output": replace(output_only, copies_blocks=True),
        "from_scratch": replace(base, layers_share=0.0, neck_share=0.0, has_teacher=False),
    }
    if mode not in modes:
        msg = f"Mode must be one of {', '.join(modes)}, got {mode!r}; choose one of them."
        raise ConfigError(msg)
    return modes[mode]


def distill_config(options: DistillOptions) -> DistillRunConfig:
    """Return the config of a run.

    Raises:
        ConfigError: Mode, recipe or a setting is unknown or impossible.
    """
    base: RunConfig = recipe(options.recipe)
    distill = mode_config(options.mode)
    if distill.has_teacher and not options.teacher:
        raise ConfigError(f"Mode {options.mode} needs a teacher; give its weights.")
    values = {item.name: getattr(base, item.name) for item in fields(RunConfig)}
    config = DistillRunConfig(**values, teacher=_short_name(options.teacher), distill=distill)
    config = replace(
        config,
        model=options.student,
        seed=options.seed,
        num_steps=options.steps,
        minutes=options.minutes,
    )
    return override(config, options.settings)


def load_teacher(spec: str, device: torch.device) -> Teacher:
    """Load a teacher.

    Args:
        spec: See `DistillOptions`.
        device: Where it shall compute.

    Raises:
        ModelNotFoundError: There are no such weights.
        CheckpointError: They are damaged, or their folder is that of another architecture.
    """
    folder = Path(spec)
    if folder.is_dir():
        state, facts = load_state(folder)
        model = build_model(architecture_of(facts["config"]))
        check_fit(model, state, folder)
        model.load_state_dict({name: value.float() for name, value in state.items()})
        model = model.to(device)
        digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    else:
        model, digest = load_model(spec, device), load_card(spec).sha256
    model = model.float().eval().requires_grad_(False)
    if isinstance(model, HighResSam3D):
        # That shortcut of CPUs skips detail away from the object, which a student should learn.
        model.decoder.is_limited = False
    return Teacher(model=model, name=_short_name(spec), sha256=digest)


def check_pair(teacher: Model, config: DistillRunConfig) -> None:
    """Refuse a teacher whose features or masks mean something else than the student's.

    Raises:
        ConfigError: Family, ROI size or token grid differ, or the student is deeper.
    """
    theirs, ours = teacher.config, architecture_of(config.to_dict())
    if theirs.family != ours.family:
        msg = (
            f"The teacher is of family {theirs.family!r} and the student {ours.name} of "
            f"{ours.family!r}; choose two of one family."
        )
        raise ConfigError(msg)
    if (theirs.image_size, theirs.grid_size) != (ours.image_size, ours.grid_size):
        msg = (
            f"The teacher reads ROIs of {theirs.image_size} voxels with {theirs.grid_size} tokens "
            f"per axis and the student {ours.image_size} with {ours.grid_size}; set "
            f"generator.size={theirs.image_size} or take another teacher."
        )
        raise ConfigError(msg)
    if ours.depth > theirs.depth:
        msg = (
            f"The student has {ours.depth} trunk blocks and its teacher {theirs.depth}; take a "
            "deeper teacher or set depth to fewer blocks."
        )
        raise ConfigError(msg)


def task_factory(teacher: Teacher) -> TaskFactory:
    """Return what makes the distillation task of a trainer, the student's first weights included.

    Args:
        teacher: From `load_teacher`.
    """

    def make(model: Model, config: RunConfig, compile_with: Wrap | None, autocast: bool) -> Task:
        assert isinstance(config, DistillRunConfig)
        student, guide = family_of(model), family_of(teacher.model)
        copied = transplant(student, guide, copies_blocks=config.distill.copies_blocks)
        return DistillTask(
            student, guide, config, copied=copied, compile_with=compile_with, autocast=autocast
        )

    return make


def build_distillation(
    options: DistillOptions, process: Process, *, pack: Path, output: Path
) -> Trainer:
    """Put teacher, student, data and config of a run together, and plan its length.

    Args:
        options: The run.
        process: From `fastsam3d.train.launch.training_process`.
        pack: The training pack.
        output: Folder of the run.

    Returns:
        The trainer, ready for ``fit``; its number of steps is fixed.

    Raises:
        ConfigError: Teacher and student do not go together, or a setting is impossible.
        FastSAM3DError: As `load_teacher` and `fastsam3d.train.launch.build_trainer`.
    """
    config = distill_config(options)
    facts: dict[str, Any] = {"teacher": None, "teacher_sha256": None}
    make_task: TaskFactory | None = None
    if config.distill.has_teacher:
        teacher = load_teacher(options.teacher, process.device)
        check_pair(teacher.model, config)
        facts = {"teacher": teacher.name, "teacher_sha256": teacher.sha256}
        make_task = task_factory(teacher)
    if options.resume:
        _check_same_run(output / CHECKPOINT, config, facts)
    trainer = build_trainer(
        config,
        process,
        pack=pack,
        output=output,
        resume=options.resume,
        facts=facts,
        make_task=make_task,
    )
    if trainer.num_steps is None:
        timings = rehearse(trainer)
        trainer.num_steps = steps_for_minutes(timings, config.minutes, process)
        trainer.facts["seconds_per_step"] = {t.label: round(t.seconds, 4) for t in timings}
    return trainer


def _short_name(spec: str) -> str:
    """Return a teacher's name without the folders of this machine."""
    path = Path(spec)
    return "/".join(path.parts[-2:]) if path.is_dir() else path.name


def _check_same_run(folder: Path, config: DistillRunConfig, facts: dict[str, Any]) -> None:
    """Refuse to go on with another teacher or another way to distil."""
    recorded = read_facts(folder)
    then = (recorded.get("teacher_sha256"), recorded["config"].get("distill"))
    if then != (facts["teacher_sha256"], asdict(config.distill)):
        msg = (
            f"The run in {folder.parent} has another teacher or other settings of distill; "
            "resume with its own words, or start a new run in another folder."
        )
        raise CheckpointError(msg)


def distil(
    options: DistillOptions, *, pack: Path, output: Path, fit: Fit | None = None
) -> Trainer | None:
    """Run a distillation to its end; the student's averaged weights lie in ``output/averaged``.

    Args:
        options: The run.
        pack: The training pack.
        output: Folder of the run.
        fit: Runs the trainer, by default ``Trainer.fit``; a caller may show progress around it.

    Returns:
        The trainer; None in processes other than the first.

    Raises:
        FastSAM3DError: As `build_distillation`.
    """
    check_output(output, resume=options.resume)
    with training_process(options.device) as process:
        trainer = build_distillation(options, process, pack=pack, output=output)
        (fit or _fit)(trainer, process)
        return trainer if process.rank == 0 else None


def _fit(trainer: Trainer, process: Process) -> None:
    del process
    trainer.fit()


def main(arguments: list[str] | None = None) -> int:
    """Run one distilling process; see ``--help``."""
    given = vars(_parser().parse_args(arguments))
    pack, output = cast("Path", given.pop("pack")), cast("Path", given.pop("output"))
    settings = tuple(given.pop("set"))
    if given.pop("eager"):
        settings = (*settings, "compile=false")
    try:
        options = DistillOptions(settings=settings, **given)
        trainer = distil(options, pack=pack, output=output)
    except FastSAM3DError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if trainer is not None:
        sys.stdout.write(json.dumps({"steps": trainer.step, "output": str(output)}) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fastsam3d.train.distill", description=__doc__)
    default = DistillOptions()
    parser.add_argument("--teacher", default="", help="weights: a name, file or averaged folder")
    parser.add_argument("--student", default=default.student, help="variant to train")
    parser.add_argument("--pack", type=Path, required=True, help="train_pack.npz")
    parser.add_argument("--output", type=Path, required=True, help="folder of this run")
    parser.add_argument("--mode", default=default.mode, help="see docs/training/distillation.md")
    parser.add_argument("--recipe", default=default.recipe, help="generator, prompts and rates")
    parser.add_argument("--device", default=default.device, help="cpu, cuda or auto")
    parser.add_argument("--minutes", type=float, default=default.minutes)
    parser.add_argument("--steps", type=int, default=None, help="instead of minutes")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--resume", action="store_true", help="go on from the run's checkpoint")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
