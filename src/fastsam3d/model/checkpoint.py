"""Weights on disk: a safetensors file, with its card beside it.

No pickle is ever read here. The digest in the card is compared before a weights file is parsed, so
a damaged or exchanged file is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from fastsam3d.errors import CheckpointError
from fastsam3d.model.card import WeightsCard, card_path, read_card
from fastsam3d.model.quantise import dequantise, quantise

# How many differing entries an error names; the rest are counted.
_MAX_NAMED = 5


def save_checkpoint(state: Mapping[str, Tensor], path: Path, card: WeightsCard) -> WeightsCard:
    """Write weights and card, each atomically, the weights first.

    An interruption between the two leaves a card whose digest does not match, which `load_state`
    refuses: there is no moment at which a wrong pair loads.

    Args:
        state: State dict of the model that ``card.architecture`` describes.
        path: Target, ending in ``.safetensors``; the card goes beside it.
        card: Facts to write; its `sha256` is replaced by that of the new file, and its
            `quantisation` decides how tensors are stored.

    Returns:
        The card as written.

    Raises:
        CheckpointError: The name has another suffix, or the folder cannot be written.
    """
    if path.suffix != ".safetensors":
        msg = f"Weights must be saved as .safetensors, got {path.name}; change the file name."
        raise CheckpointError(msg)
    if card.quantisation == "int8":
        tensors = quantise(state)
    else:
        # Clones, because tied weights share memory and safetensors stores each name by itself.
        tensors = {name: t.detach().cpu().clone().contiguous() for name, t in state.items()}
    payload = save(tensors)
    written = replace(card, sha256=hashlib.sha256(payload).hexdigest())
    text = json.dumps(written.to_dict(), indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, payload)
    write_atomically(card_path(path), text.encode())
    return written


def load_state(path: Path) -> tuple[dict[str, Tensor], WeightsCard]:
    """Read, verify and dequantise a weights file.

    Args:
        path: A ``.safetensors`` file with its card beside it.

    Returns:
        The state dict on the CPU, and the card.

    Raises:
        CheckpointError: The file or its card is missing or damaged, or they do not belong together.
    """
    payload, card = read_verified(path)
    return parse_state(payload, card, path), card


def read_verified(path: Path) -> tuple[bytes, WeightsCard]:
    """Read a weights file and its card, and check that they belong together.

    Args:
        path: A ``.safetensors`` file with its card beside it.

    Raises:
        CheckpointError: The file or its card is missing or damaged, or they do not belong together.
    """
    card = read_card(path)
    try:
        payload = path.read_bytes()
    except OSError as error:
        msg = f"Weights file {path} cannot be read ({error.strerror}); check the path."
        raise CheckpointError(msg) from error
    digest = hashlib.sha256(payload).hexdigest()
    if digest != card.sha256:
        msg = (
            f"Weights file {path} has sha256 {digest[:12]}..., but its card says "
            f"{card.sha256[:12]}...; the file is damaged or was exchanged, fetch it again."
        )
        raise CheckpointError(msg)
    return payload, card


def parse_state(payload: bytes, card: WeightsCard, path: Path) -> dict[str, Tensor]:
    """Return the state dict on the CPU of what `read_verified` read, dequantised.

    Args:
        payload: Content of the weights file.
        card: Its card.
        path: File to name in errors.

    Raises:
        CheckpointError: It is no safetensors file, or holds fewer numbers than the trunk needs.
    """
    try:
        tensors = load(payload)
    except SafetensorError as error:
        msg = f"Weights file {path} is not a safetensors file ({error}); fetch it again."
        raise CheckpointError(msg) from error
    state = dequantise(tensors) if card.quantisation == "int8" else tensors
    check_trunk(card, path, sum(tensor.numel() for tensor in state.values()))
    return state


def check_trunk(card: WeightsCard, path: Path, held: int | None = None) -> None:
    """Refuse a card whose network is far larger than its weights, before it is allocated.

    Args:
        card: Whose architecture would be built.
        path: The weights file.
        held: How many numbers it holds; by default as many as it could, one in each byte.

    Raises:
        CheckpointError: The trunk alone would need more.
    """
    config = card.architecture
    trunk = config.depth * 2 * int(config.mlp_ratio * config.embed_dim) * config.embed_dim
    limit = path.stat().st_size if held is None else held
    if trunk > limit:
        msg = (
            f"Weights file {path} does not fit its architecture: the trunk alone needs {trunk} "
            f"numbers and the file holds {limit} at most; fetch weights and card again."
        )
        raise CheckpointError(msg)


def check_fit(model: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Check that a state dict has every entry of a model with its shape, and no other.

    Args:
        model: The network.
        state: Tensors by name.
        source: File to name in the error.

    Raises:
        CheckpointError: Entries are missing, unknown or of another shape; the first are named.
    """
    differences = describe_differences(tensor_shapes(model.state_dict()), tensor_shapes(state))
    if differences:
        msg = f"Weights file {source} does not fit its architecture: {differences}."
        raise CheckpointError(msg)


def tensor_shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor by name."""
    return {name: tuple(value.shape) for name, value in state.items()}


def describe_differences(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> str:
    """Say in one phrase how two tables of tensor shapes differ; empty when they do not."""
    shared = expected.keys() & found.keys()
    wrong = [
        f"{n} is {found[n]}, not {expected[n]}" for n in sorted(shared) if found[n] != expected[n]
    ]
    groups = {
        "missing": sorted(expected.keys() - found.keys()),
        "unknown": sorted(found.keys() - expected.keys()),
        "of another shape": wrong,
    }
    return "; ".join(
        f"{len(names)} {kind} ({_name_some(names)})" for kind, names in groups.items() if names
    )


def _name_some(names: list[str]) -> str:
    shown = names[:_MAX_NAMED]
    return ", ".join([*shown, "..."] if len(names) > _MAX_NAMED else shown)


def write_atomically(path: Path, payload: bytes) -> None:
    """Write a file so that readers see the old or the new content, never a part.

    Raises:
        CheckpointError: The folder or file cannot be written; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        try:
            with temporary.open("wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        msg = f"{path} cannot be written ({error.strerror}); check the folder and the free space."
        raise CheckpointError(msg) from error
