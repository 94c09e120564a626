"""Training checkpoints: the whole state of a run in safetensors pieces with checksums.

They are replaced atomically: a reader never finds a mixture of two checkpoints. A checkpoint is a
folder: `manifest.json` names the pieces, their sha256, and what cannot be a tensor. Tensors larger
than a piece are split along their flattened elements.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load, save
from torch import Tensor

from fastsam3d.errors import CheckpointError
from fastsam3d.model.checkpoint import write_atomically

PIECE_BYTES = 15 * 1024 * 1024
MANIFEST = "manifest.json"


def save_state(folder: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write a checkpoint, replacing an earlier one only when the new one is complete.

    Args:
        folder: Where it goes; created.
        tensors: Any tensors, by name.
        facts: JSON data kept in the manifest.

    Raises:
        CheckpointError: A piece cannot be written; the earlier checkpoint stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        shapes = {name: list(t.shape) for name, t in tensors.items()}
        pieces: list[dict[str, str]] = []
        for number, chunk in enumerate(_chunks(tensors)):
            name = f"piece-{number:02d}.safetensors"
            payload = save(chunk)
            write_atomically(staging / name, payload)
            pieces.append({"file": name, "sha256": _digest(payload)})
        manifest = {"pieces": pieces, "shapes": shapes, "facts": facts}
        write_atomically(staging / MANIFEST, json.dumps(manifest, indent=1).encode())
        retired = folder.with_name(f".{folder.name}-old")
        if folder.exists():
            folder.replace(retired)
        staging.replace(folder)
        shutil.rmtree(retired, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint written by `save_state`.

    Raises:
        CheckpointError: A piece is missing or damaged.
    """
    manifest = _read_manifest(folder)
    parts: dict[str, list[tuple[int, Tensor]]] = {}
    for piece in manifest["pieces"]:
        file = folder / piece["file"]
        payload = file.read_bytes() if file.is_file() else b""
        if _digest(payload) != piece["sha256"]:
            msg = f"Checkpoint piece {file.name} is missing or damaged; copy the folder again."
            raise CheckpointError(msg)
        for key, tensor in load(payload).items():
            name, _, part = key.rpartition("#")
            parts.setdefault(name, []).append((int(part), tensor))
    tensors = {
        name: torch.cat([t for _, t in sorted(found, key=lambda item: item[0])]).view(
            manifest["shapes"][name]
        )
        for name, found in parts.items()
    }
    return tensors, cast("dict[str, Any]", manifest["facts"])


def read_facts(folder: Path) -> dict[str, Any]:
    """Read the facts of a checkpoint without its tensors.

    Raises:
        CheckpointError: There is no checkpoint.
    """
    return cast("dict[str, Any]", _read_manifest(folder)["facts"])


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        msg = f"No checkpoint was found in {folder}; it has no {MANIFEST}."
        raise CheckpointError(msg)
    return cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))


def _chunks(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    chunks: list[dict[str, Tensor]] = [{}]
    room = PIECE_BYTES
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous().flatten()
        at = part = 0
        while at < flat.numel() or part == 0:
            take = max(0, room // flat.element_size())
            if take < min(flat.numel() - at, 1024):
                chunks.append({})
                room = PIECE_BYTES
                continue
            chunk = flat[at : at + take].clone()
            chunks[-1][f"{name}#{part}"] = chunk
            room -= chunk.numel() * chunk.element_size()
            at, part = at + chunk.numel(), part + 1
    return chunks


def _digest(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()
