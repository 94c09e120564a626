"""``fastsam3d train``: a recipe and a pack in, a run folder out; also under torchrun."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from fastsam3d.cli.progress import show_training
from fastsam3d.cli.usage import Flag, UsageError

if TYPE_CHECKING:
    from fastsam3d.train.launch import Process
    from fastsam3d.train.loop import Trainer


@Parameter(name="*", group="Length and device")
@dataclass(frozen=True, kw_only=True)
class LengthOptions:
    """How long to train, and where.

    Attributes:
        minutes: Wall clock of the training loop; by default the recipe's.
        steps: Steps of the run, instead of minutes.
        device: Where to compute; auto takes CUDA if there is any.
        resume: Go on from the checkpoint in the output folder, to the length planned then.
        eager: Do not compile the stages on CUDA: starts at once, slower by half.
    """

    minutes: float | None = None
    steps: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    resume: Flag = False
    eager: Flag = False

    def check(self, output: Path) -> None:
        """Refuse what contradicts itself, before any work is done.

        Raises:
            UsageError: Both lengths are given, or one is not positive.
            ConfigError: The folder holds a run that would be overwritten.
        """
        if self.minutes is not None and self.steps is not None:
            raise UsageError("--minutes and --steps exclude each other; give one.")
        if any(length is not None and length <= 0 for length in (self.minutes, self.steps)):
            raise UsageError("--minutes and --steps must be positive.")
        from fastsam3d.train.launch import check_output

        check_output(output, resume=self.resume)


def train(
    recipe: str,
    /,
    *,
    pack: Path,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    length: LengthOptions = LengthOptions(),
    start_from: str | None = None,
    seed: int | None = None,
    settings: Annotated[tuple[str, ...], Parameter(name="--set", negative="")] = (),
) -> None:
    """Train a model from a pack; torchrun --nproc-per-node N -m fastsam3d train uses N GPUs.

    Args:
        recipe: Named recipe: default, continue or debug.
        pack: Training pack (.npz, its .json beside it), see `python -m fastsam3d.train.pack`.
        output: Folder of the run: log, resolved config, checkpoint and averaged weights.
        length: How long, where.
        start_from: Weights to begin with: a run's averaged folder, a .safetensors file or a name.
        seed: Seed of weights and data; by default the recipe's.
        settings: Change a field of the recipe, such as generator.num_real=9. May be given several
            times.
    """
    length.check(output)
    from fastsam3d.train.__main__ import run_config
    from fastsam3d.train.launch import build_trainer, training_process

    config = run_config(
        recipe,
        minutes=length.minutes,
        steps=length.steps,
        seed=seed,
        eager=length.eager,
        start_from=start_from,
        assignments=settings,
    )
    with training_process(length.device) as process:
        trainer = build_trainer(
            config,
            process,
            pack=pack,
            output=output,
            start_from=start_from,
            resume=length.resume,
        )
        fit(trainer, process, title=f"Training {config.model}")
    if process.rank == 0:
        print(f"{trainer.step} steps; averaged weights and log in {output}")


def fit(trainer: Trainer, process: Process, *, title: str) -> None:
    """Train to the end; the first process shows progress and writes TensorBoard files.

    Args:
        trainer: The run.
        process: This process.
        title: What the progress bar says.
    """
    from fastsam3d.train.runlog import LOG_FILE, LogFollower
    from fastsam3d.train.tensorboard import EventWriter, is_available

    if process.rank > 0:
        trainer.fit()
        return
    with ExitStack() as stack:
        observers = [stack.enter_context(show_training(title))]
        if is_available():
            observers.append(stack.enter_context(EventWriter(trainer.output)))
        else:
            print(
                "tensorboard is not installed (pip install 'fastsam3d[train]'): log.jsonl only.",
                file=sys.stderr,
            )
        stack.enter_context(LogFollower(trainer.output / LOG_FILE, *observers))
        trainer.fit()
