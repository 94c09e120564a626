"""Fine-tune given weights on a pack: ``python -m fastsam3d.train.finetune --pack P --output DIR``.

The same trainer, generator and prompts as any training; gentler rates and mostly real images.
Needs torch, numpy, scipy and safetensors only; `fastsam3d finetune` writes the pack before.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastsam3d.errors import ConfigError, FastSAM3DError
from fastsam3d.eval.folders import find_cases
from fastsam3d.model.card import WeightsCard, read_card
from fastsam3d.model.config import ModelConfig
from fastsam3d.model.registry import find_weights
from fastsam3d.train.config import RunConfig
from fastsam3d.train.drawing import GeneratorConfig
from fastsam3d.train.held_out import check_measurable, compare
from fastsam3d.train.launch import (
    Process,
    build_trainer,
    check_output,
    trainable_architecture,
    training_process,
)
from fastsam3d.train.loop import Trainer
from fastsam3d.train.overrides import override
from fastsam3d.train.package import package

RUN_FOLDER = "run"
HELD_OUT_FILE = "held_out.json"
UNSPECIFIED = "unspecified"
# Compiling takes minutes; it pays only in runs that are longer than that.
COMPILE_FROM_MINUTES = 20.0

Fit = Callable[[Trainer, Process], None]


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """How to fine-tune.

    Attributes:
        model: Weights to begin with: a name or the path of a ``.safetensors`` file.
        name: Of the new weights and their file.
        licence: Of the new weights, for their card.
        notes: Kept in the card.
        device: ``cpu``, ``cuda`` or ``auto``.
        minutes: Wall clock of the training loop, used when `steps` is None.
        steps: Steps of the run.
        seed: Of drawing and rendering.
        resume: Go on from the run's checkpoint, to the length planned then.
        settings: Changes of the run's config, see `fastsam3d.train.overrides.override`.
    """

    model: str = "hr_s"
    name: str = "finetuned"
    licence: str = UNSPECIFIED
    notes: str = ""
    device: str = "auto"
    minutes: float = 10.0
    steps: int | None = None
    seed: int = 1
    resume: bool = False
    settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]*\w[\w.-]*", self.name):
            msg = f"The name may hold letters, digits and . _ - only, got {self.name!r}."
            raise ConfigError(msg)
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"A run needs at least one step, got {self.steps}.")


def finetune_config(
    architecture: ModelConfig, options: FinetuneOptions, *, on_gpu: bool
) -> RunConfig:
    """Return the config of a fine-tuning run.

    Three quarters of the ROIs are real images of the pack, the rest is painted on its label maps
    so that what was learnt from synthetic images is not lost. A CPU gets small batches, and
    saves often.

    Args:
        architecture: Of the weights to begin with.
        options: Length, seed, changes.
        on_gpu: Whether the run has a CUDA device.

    Raises:
        ConfigError: A setting is unknown or impossible.
    """
    generator = GeneratorConfig(
        size=architecture.image_size,
        num_shapes=1 if on_gpu else 0,
        num_painted=3 if on_gpu else 1,
        num_real=12 if on_gpu else 3,
        share_supervoxel=0.0,
        share_lesion=0.0,
    )
    config = RunConfig(
        model=architecture.name,
        initial_weights=options.model if options.model.isidentifier() else Path(options.model).name,
        seed=options.seed,
        num_steps=options.steps,
        minutes=options.minutes,
        calibration_steps=100 if on_gpu else 4,
        muon_rate=0.004,
        adam_rate=2e-4,
        warmup_steps=20,
        decay_share=0.5,
        ema=0.99,
        compile=on_gpu and options.steps is None and options.minutes >= COMPILE_FROM_MINUTES,
        log_every=25 if on_gpu else 1,
        save_every=500 if on_gpu else 20,
        generator=generator,
    )
    return override(config, options.settings)


def start_card(options: FinetuneOptions) -> WeightsCard:
    """Return the card of the weights to begin with, before any work is done.

    Raises:
        ModelNotFoundError: There are no such weights.
        CheckpointError: Their card is missing or wrong.
        ConfigError: They cannot be trained.
    """
    source = find_weights(options.model)
    card = read_card(source)
    trainable_architecture(card, source)
    return card


def finetune(
    pack: Path, output: Path, options: FinetuneOptions, *, fit: Fit | None = None
) -> Path | None:
    """Train on a pack and write the averaged weights with their card.

    Args:
        pack: The training pack.
        output: Gets ``run/`` (log, config, checkpoint) and the weights.
        options: How.
        fit: Runs the trainer, by default ``Trainer.fit``; a caller may show progress around it.

    Returns:
        The weights file; None in processes other than the first.

    Raises:
        FastSAM3DError: As `start_card`, `fastsam3d.train.launch.build_trainer` and
            `fastsam3d.train.package.package`.
    """
    card = start_card(options)
    run = output / RUN_FOLDER
    check_output(run, resume=options.resume)
    with training_process(options.device) as process:
        config = finetune_config(card.architecture, options, on_gpu=process.device.type == "cuda")
        trainer = build_trainer(
            config,
            process,
            pack=pack,
            output=run,
            start_from=find_weights(options.model),
            resume=options.resume,
            facts={"initial_sha256": card.sha256},
        )
        (fit or _fit)(trainer, process)
    if process.rank > 0:
        return None
    weights = output / f"{options.name}.safetensors"
    package(
        run,
        weights,
        pack=pack,
        name=options.name,
        licence=options.licence,
        notes=options.notes or f"fine-tuned from {card.name} (sha256 {card.sha256[:12]})",
        start=card,
    )
    return weights


def _fit(trainer: Trainer, process: Process) -> None:
    del process
    trainer.fit()


def main(arguments: list[str] | None = None) -> int:
    """Fine-tune on an existing pack; see ``--help``."""
    options = _parser().parse_args(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    chosen = _options(options)
    try:
        cases = [] if options.validation is None else find_cases(options.validation)
        check_measurable(cases)
        weights = finetune(options.pack, options.output, chosen)
        if weights is not None:
            sys.stdout.write(json.dumps({"weights": str(weights)}) + "\n")
        if weights is not None and cases:
            facts = {"command": shlex.join(["python", "-m", "fastsam3d.train.finetune", *given])}
            if options.commit is not None:
                facts["commit"] = options.commit
            path = options.output / HELD_OUT_FILE
            table = compare(chosen.model, weights, cases, path, device=chosen.device, facts=facts)
            sys.stdout.write(table + "\n")
    except FastSAM3DError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fastsam3d.train.finetune", description=__doc__)
    default = FinetuneOptions()
    parser.add_argument("--pack", type=Path, required=True, help="finetune_pack.npz")
    parser.add_argument("--output", type=Path, required=True, help="folder of this run")
    parser.add_argument("--model", default=default.model, help="weights to begin with")
    parser.add_argument("--name", default=default.name, help="of the new weights")
    parser.add_argument("--licence", default=default.licence, help="of the new weights")
    parser.add_argument("--notes", default=default.notes, help="kept in the card")
    parser.add_argument("--device", default=default.device, help="cpu, cuda or auto")
    parser.add_argument("--minutes", type=float, default=default.minutes)
    parser.add_argument("--steps", type=int, default=None, help="instead of minutes")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--resume", action="store_true", help="go on from the run's checkpoint")
    parser.add_argument("--validation", type=Path, help="unseen cases: a folder or a case pack")
    parser.add_argument("--commit", help="recorded when git is not at hand")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    return parser


def _options(parsed: argparse.Namespace) -> FinetuneOptions:
    given: dict[str, Any] = dict(vars(parsed))
    settings = tuple(given.pop("set"))
    for other in ("pack", "output", "validation", "commit"):
        del given[other]
    return replace(FinetuneOptions(), settings=settings, **given)


if __name__ == "__main__":
    sys.exit(main())
