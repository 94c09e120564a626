"""Train a model from a pack: ``python -m fastsam3d.train RECIPE --pack FILE --output DIR``.

Under ``torchrun --nproc-per-node N -m fastsam3d.train ...`` every process uses its own GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from fastsam3d.errors import FastSAM3DError
from fastsam3d.train.config import RunConfig, recipe
from fastsam3d.train.launch import build_trainer, training_process
from fastsam3d.train.overrides import override


def main(arguments: list[str] | None = None) -> int:
    """Run one training process; see ``--help``."""
    options = _parser().parse_args(arguments)
    try:
        _train(options)
    except FastSAM3DError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def run_config(
    recipe_name: str,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    seed: int | None = None,
    eager: bool = False,
    start_from: str | Path | None = None,
    assignments: tuple[str, ...] = (),
) -> RunConfig:
    """Return a recipe with the changes that options ask for; `assignments` come last.

    Args:
        recipe_name: See `fastsam3d.train.config.RECIPES`.
        minutes: Length of the run.
        steps: Length of the run in steps; beats `minutes`.
        seed: Seed of the run.
        eager: Do not compile.
        start_from: Weights to begin with; their name is recorded.
        assignments: ``key=value`` texts, see `fastsam3d.train.overrides.override`.

    Raises:
        ConfigError: The recipe, a key or a value is unknown or impossible.
    """
    config = recipe(recipe_name)
    if minutes is not None:
        config = replace(config, minutes=minutes, num_steps=None)
    if steps is not None:
        config = replace(config, num_steps=steps)
    if seed is not None:
        config = replace(config, seed=seed)
    if eager:
        config = replace(config, compile=False)
    if start_from is not None:
        config = replace(config, initial_weights=Path(start_from).name)
    return override(config, assignments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fastsam3d.train", description=__doc__)
    parser.add_argument("recipe", help="named recipe, see fastsam3d.train.config")
    parser.add_argument("--pack", type=Path, required=True, help="train_pack.npz")
    parser.add_argument("--output", type=Path, required=True, help="folder of this run")
    parser.add_argument("--minutes", type=float, default=None, help="length of the run")
    parser.add_argument("--steps", type=int, default=None, help="length of the run in steps")
    parser.add_argument("--seed", type=int, default=None, help="seed of the run")
    parser.add_argument("--start-from", help="a run's averaged folder, .safetensors file or name")
    parser.add_argument("--resume", action="store_true", help="go on from the run's checkpoint")
    parser.add_argument("--eager", action="store_true", help="do not compile; slower by half")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a field of the recipe, such as generator.num_real=9",
    )
    return parser


def _train(options: argparse.Namespace) -> None:
    config = run_config(
        options.recipe,
        minutes=options.minutes,
        steps=options.steps,
        seed=options.seed,
        eager=options.eager,
        start_from=options.start_from,
        assignments=tuple(options.set),
    )
    with training_process(options.device) as process:
        trainer = build_trainer(
            config,
            process,
            pack=options.pack,
            output=options.output,
            start_from=options.start_from,
            resume=options.resume,
        )
        trainer.fit()
    if process.rank == 0:
        sys.stdout.write(json.dumps({"steps": trainer.step, "output": str(options.output)}) + "\n")


if __name__ == "__main__":
    sys.exit(main())
