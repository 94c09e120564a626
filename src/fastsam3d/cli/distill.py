"""``fastsam3d distill``: a teacher, a student and a pack in, a run folder out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fastsam3d.cli.train import LengthOptions, fit

DEFAULT_MINUTES = 10.0


@Parameter(name="*", group="Teacher and student")
@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """Who learns from whom, and how.

    Attributes:
        student: Variant to train, such as hr_s or fastsam3d_6l; --set depth=6 shortens it.
        teacher: Weights of one family with the student: a name, a .safetensors file, or a run's
            averaged folder. Only mode from_scratch does without.
        mode: progressive, all_layers, output_only, copy_then_output or from_scratch.
        recipe: Whose data mix, prompts and learning rates are used.
    """

    student: str = "hr_s"
    teacher: str = ""
    mode: str = "progressive"
    recipe: str = "default"


def distill(
    *,
    pack: Path,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    pair: PairOptions = PairOptions(),
    length: LengthOptions = LengthOptions(),  # noqa: B008 - frozen, hence safe to share
    seed: int = 1,
    settings: Annotated[tuple[str, ...], Parameter(name="--set", negative="")] = (),
) -> None:
    """Distil a student; torchrun --nproc-per-node N -m fastsam3d distill uses N GPUs.

    By default layer by layer, then its image embedding, then its decoder.

    Args:
        pack: Training pack (.npz, its .json beside it).
        output: Folder of the run: log, resolved config, checkpoint and averaged weights.
        pair: Teacher and student.
        length: How long, where; 10 minutes by default.
        seed: Seed of weights and data.
        settings: Change a field of the run's config, such as distill.layer_loss.cosine=0.5.
    """
    length.check(output)
    from fastsam3d.train.distill import DistillOptions, distil

    options = DistillOptions(
        teacher=pair.teacher,
        student=pair.student,
        mode=pair.mode,
        recipe=pair.recipe,
        device=length.device,
        minutes=length.minutes or DEFAULT_MINUTES,
        steps=length.steps,
        seed=seed,
        resume=length.resume,
        settings=(*settings, "compile=false") if length.eager else settings,
    )
    trainer = distil(
        options,
        pack=pack,
        output=output,
        fit=lambda trainer, process: fit(trainer, process, title=f"Distilling {pair.student}"),
    )
    if trainer is not None:
        print(f"{trainer.step} steps; averaged weights and log in {output}")
