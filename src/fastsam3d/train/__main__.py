"""Train a model from a pack: ``python -m fastsam3d.train RECIPE --pack FILE --output DIR``.

Under ``torchrun --nproc-per-node N -m fastsam3d.train ...`` every process uses its own GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from fastsam3d.errors import ConfigError, FastSAM3DError
from fastsam3d.model.config import MODEL_CONFIGS
from fastsam3d.model.hr import HighResSam3D
from fastsam3d.train.bank import TrainingBank
from fastsam3d.train.config import RunConfig, recipe
from fastsam3d.train.loop import CHECKPOINT, Trainer
from fastsam3d.train.pack import load_pack, read_index
from fastsam3d.train.state import load_state

# bf16 conv3d was slow or wrong in cuDNN 9.8 to 9.14.
MIN_CUDNN = 91500


def main(arguments: list[str] | None = None) -> int:
    """Run one training process; see ``--help``."""
    options = _parser().parse_args(arguments)
    try:
        _train(options)
    except FastSAM3DError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fastsam3d.train", description=__doc__)
    parser.add_argument("recipe", help="named recipe, see fastsam3d.train.config")
    parser.add_argument("--pack", type=Path, required=True, help="train_pack.npz")
    parser.add_argument("--output", type=Path, required=True, help="folder of this run")
    parser.add_argument("--minutes", type=float, default=None, help="length of the run")
    parser.add_argument("--steps", type=int, default=None, help="length of the run in steps")
    parser.add_argument("--seed", type=int, default=None, help="seed of the run")
    parser.add_argument("--start-from", type=Path, default=None, help="averaged weights to load")
    parser.add_argument("--resume", action="store_true", help="go on from the run's checkpoint")
    parser.add_argument("--eager", action="store_true", help="do not compile; slower by half")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def _train(options: argparse.Namespace) -> None:
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = _device(options.device)
    if world_size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    config = _config(options)
    torch.manual_seed(config.seed)  # pyright: ignore[reportUnknownMemberType]
    # The debug recipe trains on smaller ROIs than the variant is made for.
    architecture = replace(MODEL_CONFIGS[config.model], image_size=config.generator.size)
    model = HighResSam3D(architecture)
    if options.start_from:
        state, _ = load_state(options.start_from)
        model.load_state_dict({name: value.float() for name, value in state.items()})
    # The call is documented, but torch's overloads lack it; it converts in place.
    model.to(device, memory_format=torch.channels_last_3d)  # pyright: ignore[reportCallIssue]
    bank = TrainingBank(load_pack(options.pack), device=device)
    facts = {"data_sha256": read_index(options.pack)["sha256"], "torch": torch.__version__}
    trainer = Trainer(
        model,
        bank,
        config,
        output=options.output,
        rank=rank,
        world_size=world_size,
        facts=facts,
    )
    if options.resume:
        trainer.resume(options.output / CHECKPOINT)
    trainer.fit()
    if rank == 0:
        sys.stdout.write(json.dumps({"steps": trainer.step, "output": str(options.output)}) + "\n")
    if world_size > 1:
        dist.destroy_process_group()


def _config(options: argparse.Namespace) -> RunConfig:
    config = recipe(options.recipe)
    if options.minutes is not None:
        config = replace(config, minutes=options.minutes, num_steps=None)
    if options.steps is not None:
        config = replace(config, num_steps=options.steps)
    if options.seed is not None:
        config = replace(config, seed=options.seed)
    if options.eager:
        config = replace(config, compile=False)
    if options.start_from is not None:
        config = replace(config, initial_weights=options.start_from.name)
    return config


def _device(name: str) -> torch.device:
    if not name.startswith("cuda"):
        return torch.device(name)
    version = torch.backends.cudnn.version() or 0
    if version < MIN_CUDNN:
        msg = (
            f"Training needs cuDNN {MIN_CUDNN} or newer (bf16 conv3d), got {version}; "
            "update torch or train with --device cpu."
        )
        raise ConfigError(msg)
    torch.backends.cuda.matmul.allow_tf32 = True
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


if __name__ == "__main__":
    sys.exit(main())
