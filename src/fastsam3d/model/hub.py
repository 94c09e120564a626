"""Weights from the Hugging Face Hub, its local cache or a plain folder.

A repository or folder holds ``model.safetensors``, its card ``model.json`` and, when written here,
a ``README.md`` with the Hub's metadata; `save_pretrained` writes a folder that
``huggingface_hub.upload_folder`` publishes as it is.

``PyTorchModelHubMixin`` is not used: as a base class it would make huggingface_hub an import of
every model, it knows no cards, and it loads weights without comparing digests.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from fastsam3d.errors import CheckpointError, ModelNotFoundError
from fastsam3d.model.card import WeightsCard, card_path
from fastsam3d.model.registry import load_model

if TYPE_CHECKING:
    from torch import Tensor
    from torch import device as Device

    from fastsam3d.model.registry import Model

WEIGHTS_NAME = "model.safetensors"
_README_NAME = "README.md"


def from_pretrained(
    repo_id_or_path: str | Path,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    cache_dir: str | Path | None = None,
    device: str | Device = "cpu",
) -> Model:
    """Load a model from a local folder or a Hub repository.

    A folder is read as it is and needs neither huggingface_hub nor a network.

    Args:
        repo_id_or_path: A folder, or a repository as ``owner/name``.
        revision: Branch, tag or commit of the repository; its main branch when None.
        local_files_only: Use the local Hub cache and never the network.
        cache_dir: Hub cache to use; the user's when None.
        device: Where the model shall live.

    Returns:
        The model in evaluation mode.

    Raises:
        ModelNotFoundError: There is no such folder or repository, it holds no weights of ours, it
            is not in the cache and the network may not be used, or huggingface_hub is missing.
        CheckpointError: The weights are damaged or do not fit their card.
    """
    folder = Path(repo_id_or_path)
    if not folder.is_dir():
        folder = _download(str(repo_id_or_path), revision, local_files_only, cache_dir)
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        msg = (
            f"{repo_id_or_path} holds no {WEIGHTS_NAME}; give a folder or repository written by "
            "fastsam3d, or convert the checkpoint first."
        )
        raise ModelNotFoundError(msg)
    return load_model(path, device)


def save_pretrained(state: Mapping[str, Tensor], folder: str | Path, card: WeightsCard) -> Path:
    """Write weights, card and a Hub README into a folder, ready to upload.

    Args:
        state: State dict of the model that ``card.architecture`` describes.
        folder: Target; created when missing.
        card: Facts to write; see `checkpoint.save_checkpoint`.

    Returns:
        Path of the weights file.

    Raises:
        CheckpointError: The folder cannot be written.
    """
    from fastsam3d.model.checkpoint import (  # noqa: PLC0415 (loads torch)
        save_checkpoint,
        write_atomically,
    )

    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"Folder {target} cannot be created ({error.strerror}); choose another."
        raise CheckpointError(msg) from error
    path = target / WEIGHTS_NAME
    written = save_checkpoint(state, path, card)
    write_atomically(target / _README_NAME, _readme(written).encode())
    return path


def _download(
    repo_id: str, revision: str | None, local_files_only: bool, cache_dir: str | Path | None
) -> Path:
    try:
        hub = import_module("huggingface_hub")
    except ImportError as error:
        msg = (
            f"{repo_id} is no local folder, and the Hub needs huggingface_hub; "
            "install it with: pip install 'fastsam3d[hub]'."
        )
        raise ModelNotFoundError(msg) from error
    try:
        snapshot: str = hub.snapshot_download(
            repo_id,
            revision=revision,
            allow_patterns=[WEIGHTS_NAME, card_path(Path(WEIGHTS_NAME)).name],
            local_files_only=local_files_only,
            cache_dir=cache_dir,
        )
    except (OSError, ValueError) as error:  # the bases of all its errors
        where = "the local Hub cache" if local_files_only else "the Hub or its local cache"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        msg = f"{repo_id} was not found in {where} ({reason}); check the name and the network."
        raise ModelNotFoundError(msg) from error
    return Path(snapshot)


def _readme(card: WeightsCard) -> str:
    spacings = ", ".join(f"{spacing:g}" for spacing in card.preprocessing.spacings_mm)
    sources = "\n".join(f"- {source}" for source in card.training_data)
    return f"""---
license: {card.licence.lower()}
library_name: fastsam3d
pipeline_tag: image-segmentation
tags: [medical, "3d", interactive-segmentation]
---

# {card.name}

Promptable 3D segmentation model for `fastsam3d`.

- input: {card.preprocessing.image_size}^3 voxels at one of {spacings} mm
- normalisation: {card.preprocessing.normalisation}
- storage: {card.quantisation}; sha256 of the weights `{card.sha256}`
- created: {card.created}

Trained on:

{sources}

{card.notes}
"""
