"""One training process: a config and a pack in, a trainer out; alone or under torchrun.

What `python -m fastsam3d.train`, `fastsam3d train` and fine-tuning share. Needs torch, numpy and
safetensors only, because it runs on the training machine.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from fastsam3d.errors import CheckpointError, ConfigError
from fastsam3d.model.card import WeightsCard
from fastsam3d.model.checkpoint import check_fit
from fastsam3d.model.checkpoint import load_state as load_weights
from fastsam3d.model.config import ModelConfig
from fastsam3d.model.hr import HighResSam3D
from fastsam3d.model.registry import build_model, find_config, find_weights
from fastsam3d.train.bank import TrainingBank
from fastsam3d.train.config import RunConfig, architecture_of
from fastsam3d.train.families import Model
from fastsam3d.train.loop import CHECKPOINT, TaskFactory, Trainer
from fastsam3d.train.pack import load_pack, read_index
from fastsam3d.train.runlog import LOG_FILE
from fastsam3d.train.state import MANIFEST, load_state, read_facts

# bf16 conv3d was slow or wrong in cuDNN 9.8 to 9.14.
MIN_CUDNN = 91500
POSITION = "encoder.trunk.position"


@dataclass(frozen=True, kw_only=True)
class Process:
    """This process among those of the run.

    Attributes:
        device: Where it computes.
        rank: Its number; rank 0 writes the files.
        world_size: How many there are.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1


@contextmanager
def training_process(device: str = "auto") -> Generator[Process, None, None]:
    """Take part in the run that torchrun describes, or run alone.

    Args:
        device: ``cpu``, ``cuda``, or ``auto`` for CUDA where there is any.

    Yields:
        This process; its group is left at the end of the block.

    Raises:
        ConfigError: The machine cannot train on that device.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    chosen = training_device(device)
    if world_size > 1:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Process(device=chosen, rank=rank, world_size=world_size)
    finally:
        if world_size > 1:
            dist.destroy_process_group()


def training_device(name: str) -> torch.device:
    """Return a device that can train, and let it multiply in TF32.

    Raises:
        ConfigError: There is no CUDA device, or its cuDNN is too old.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not name.startswith("cuda"):
        return torch.device(name)
    if not torch.cuda.is_available():
        raise ConfigError("Device cuda was asked for, but torch sees none; use --device cpu.")
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


def build_trainer(
    config: RunConfig,
    process: Process,
    *,
    pack: Path,
    output: Path,
    start_from: str | Path | None = None,
    resume: bool = False,
    facts: dict[str, Any] | None = None,
    make_task: TaskFactory | None = None,
) -> Trainer:
    """Put model, data and config of a run together.

    Args:
        config: The run.
        process: From `training_process`.
        pack: The training pack.
        output: Folder of the run.
        start_from: Weights to begin with: the ``averaged`` folder of a run, a ``.safetensors``
            file, or the name of a model that ships with the package.
        resume: Go on from the checkpoint in `output`; the length of the run is the checkpoint's.
        facts: Further facts for the record.
        make_task: Makes what is minimised; prompted segmentation by default.

    Returns:
        The trainer, ready for ``fit``.

    Raises:
        ConfigError: `start_from` is of another architecture than ``config.model``, or the recipe
            asks for what the pack does not have.
        CheckpointError: Weights or checkpoint are missing, damaged or of another run.
        DatasetError: The pack is missing, damaged or empty.
    """
    digest = str(read_index(pack)["sha256"])
    torch.manual_seed(config.seed)  # pyright: ignore[reportUnknownMemberType]
    model = build_model(architecture_of(config.to_dict()))
    if start_from is not None:
        model.load_state_dict(_starting_weights(start_from, model))
    model.to(process.device)
    bank = TrainingBank(load_pack(pack), device=process.device)
    _check_streams(bank, config)
    trainer = Trainer(
        model,
        bank,
        config,
        output=output,
        rank=process.rank,
        world_size=process.world_size,
        facts={"data_sha256": digest, "torch": torch.__version__, **(facts or {})},
        make_task=make_task,
    )
    if process.rank == 0 and not resume:
        # What an earlier attempt left, that ended before its first checkpoint.
        (output / LOG_FILE).unlink(missing_ok=True)
    if resume:
        _check_same_data(output / CHECKPOINT, digest)
        trainer.resume(output / CHECKPOINT)
    return trainer


def check_output(output: Path, *, resume: bool) -> None:
    """Refuse to write over a run that could be resumed.

    Args:
        output: Folder of the run to be.
        resume: Whether it is meant to go on.

    Raises:
        ConfigError: The folder holds a checkpoint, and going on was not asked for.
    """
    if not resume and (output / CHECKPOINT / MANIFEST).is_file():
        raise ConfigError(f"{output} holds a run; resume it or choose another folder.")


def trainable_architecture(card: WeightsCard, source: Path) -> ModelConfig:
    """Return the registered architecture that a card describes.

    Raises:
        ConfigError: The trainer cannot train it: another family, or sizes of its own.
    """
    described = card.architecture
    if described.family != "hr":
        msg = (
            f"{source.name} is of family {described.family!r} and only 'hr' models can be trained; "
            "start from hr_s or from weights made from it."
        )
        raise ConfigError(msg)
    known = find_config(described.name)
    sizes = {"image_size": described.image_size, "attention": described.attention}
    if replace(known, **sizes) != described:
        msg = (
            f"{source.name} differs from the registered architecture {described.name!r}; "
            "start from weights of this version."
        )
        raise ConfigError(msg)
    return described


def _starting_weights(start_from: str | Path, model: Model) -> dict[str, Tensor]:
    folder = Path(start_from)
    if folder.is_dir():
        state, _ = load_state(folder)
        source = folder
    else:
        source = find_weights(start_from)
        state, card = load_weights(source)
        trainable_architecture(card, source)
    state = {name: value.float() for name, value in state.items()}
    if isinstance(model, HighResSam3D) and POSITION in state:
        state[POSITION] = resized_position(state[POSITION], model.config.grid_size)
    check_fit(model, state, source)
    return state


def resized_position(position_1TC: Tensor, grid_size: int) -> Tensor:
    """Interpolate learned positions of a cubic token grid for a grid of another size.

    Args:
        position_1TC: One vector per token, tokens in row-major order, float32 (1, T, C).
        grid_size: Tokens per axis wanted.

    Returns:
        Shape (1, grid_size**3, C); the input itself where the size is the same.
    """
    side = round(position_1TC.shape[1] ** (1 / 3))
    if side == grid_size:
        return position_1TC
    grid = position_1TC.transpose(1, 2).reshape(1, -1, side, side, side)
    size = (grid_size,) * 3
    return functional.interpolate(grid, size=size, mode="trilinear").flatten(2).transpose(1, 2)


def _check_streams(bank: TrainingBank, config: RunConfig) -> None:
    """Refuse a recipe that asks for cases which the pack does not have."""
    generator = config.generator
    share = generator.share_supervoxel if generator.num_real else 0.0
    painted = generator.share_painted_supervoxel if generator.num_painted else 0.0
    needs = {
        "label maps; set generator.num_painted=0": (
            generator.num_painted > 0 and painted < 1,
            any(case.labels for case in bank.cases),
        ),
        "images with labels; set generator.share_supervoxel=1": (
            generator.num_real > 0 and share < 1 and generator.share_anatomy < 1,
            any(case.labels and case.mips for case in bank.cases),
        ),
        "bones and air spaces of CT; set generator.share_anatomy=0": (
            generator.num_real > 0 and share < 1 and generator.share_anatomy > 0,
            any(case.anatomy for case in bank.cases),
        ),
        "supervoxels; set generator.share_supervoxel=0": (
            share > 0,
            any(case.supervoxels for case in bank.cases),
        ),
        "supervoxels; set generator.share_painted_supervoxel=0": (
            painted > 0,
            any(case.supervoxels for case in bank.cases),
        ),
    }
    for what, (is_wanted, is_there) in needs.items():
        if is_wanted and not is_there:
            raise ConfigError(f"The pack has no {what}, or take another pack.")


def _check_same_data(folder: Path, digest: str) -> None:
    recorded = read_facts(folder).get("data_sha256")
    if recorded != digest:
        msg = (
            f"The run was trained on a pack of sha256 {str(recorded)[:12]}, this pack has "
            f"{digest[:12]}; give the run's own pack, or start a new run from its averaged weights."
        )
        raise CheckpointError(msg)
