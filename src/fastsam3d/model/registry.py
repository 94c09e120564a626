"""Models by name: build one, list them, load weights that ship with the package or lie in a file.

A name and the path of a ``.safetensors`` file (card beside it) are accepted alike. Listing loads
no torch.
"""

from __future__ import annotations

import difflib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fastsam3d.errors import ConfigError, ModelNotFoundError
from fastsam3d.model.card import WeightsCard, card_path, read_card
from fastsam3d.model.config import DEFAULT_MODEL, MODEL_CONFIGS, ModelConfig

if TYPE_CHECKING:
    from torch import device as Device

    from fastsam3d.model.hr import HighResSam3D
    from fastsam3d.model.sam_med3d import SamMed3D

    Model = HighResSam3D | SamMed3D

_WEIGHTS_FOLDER = "weights"
_WEIGHTS_SUFFIX = ".safetensors"


def list_models() -> list[str]:
    """Return the names that `create_model` knows, the default first."""
    return sorted(MODEL_CONFIGS, key=lambda name: (name != DEFAULT_MODEL, name))


def create_model(name: str, **overrides: Any) -> Model:
    """Build a model with random weights.

    Args:
        name: One of `list_models`.
        overrides: Fields of `ModelConfig` to change.

    Raises:
        ModelNotFoundError: The name is unknown.
        ConfigError: An override is unknown or its value is impossible.
    """
    config = find_config(name)
    try:
        config = replace(config, **overrides)
    except TypeError as error:
        msg = f"Model {name} cannot be built with these overrides: {error}."
        raise ConfigError(msg) from error
    return build_model(config)


def build_model(config: ModelConfig) -> Model:
    """Build the network that a config describes, with random weights."""
    return _laid_out(_build(config))


def _build(config: ModelConfig) -> Model:
    if config.family == "hr":
        from fastsam3d.model.hr import HighResSam3D  # noqa: PLC0415 (each family on demand)

        return HighResSam3D(config)
    from fastsam3d.model.sam_med3d import SamMed3D  # noqa: PLC0415

    return SamMed3D(config)


def find_config(name: str) -> ModelConfig:
    """Return the config of a registered name.

    Raises:
        ModelNotFoundError: The name is unknown; the message lists near names.
    """
    try:
        return MODEL_CONFIGS[name]
    except KeyError:
        near = difflib.get_close_matches(name, MODEL_CONFIGS, n=3, cutoff=0.4) or list_models()
        msg = (
            f"No model is called {name!r}; did you mean {', '.join(near)}? "
            "A weights file is given by its path, ending in .safetensors."
        )
        raise ModelNotFoundError(msg) from None


def find_weights(name_or_path: str | Path) -> Path:
    """Return the weights file of a name that ships with the package, or of a path.

    Raises:
        ModelNotFoundError: There is no such file, the name is unknown, or no weights ship for it.
    """
    if isinstance(name_or_path, Path) or name_or_path.endswith(_WEIGHTS_SUFFIX):
        path = Path(name_or_path).expanduser()
        if path.suffix != _WEIGHTS_SUFFIX or not path.is_file():
            msg = (
                f"{path} is not a {_WEIGHTS_SUFFIX} file; check the path, or convert an official "
                "checkpoint with `fastsam3d models convert`."
            )
            raise ModelNotFoundError(msg)
        return path
    find_config(name_or_path)
    path = bundled_weights(name_or_path)
    if path is None:
        msg = (
            f"No weights of {name_or_path} ship with this package; give the path of a "
            f"{_WEIGHTS_SUFFIX} file, for example of a converted official checkpoint."
        )
        raise ModelNotFoundError(msg)
    return path


def bundled_weights(name: str) -> Path | None:
    """Return the weights file that ships with the package under a name, or None."""
    folder = Path(str(resources.files("fastsam3d").joinpath(_WEIGHTS_FOLDER)))
    path = folder / f"{name}{_WEIGHTS_SUFFIX}"
    return path if path.is_file() and card_path(path).is_file() else None


def load_card(name_or_path: str | Path) -> WeightsCard:
    """Return the card of a model by name or weights path.

    Raises:
        ModelNotFoundError: Nothing has that name, or no file is there.
        CheckpointError: The card is missing or breaks a rule of the format.
    """
    return read_card(find_weights(name_or_path))


def load_model(name_or_path: str | Path, device: str | Device = "cpu") -> Model:
    """Return a trained model, in evaluation mode on a device.

    Args:
        name_or_path: A name whose weights ship with the package, or a ``.safetensors`` path.
        device: Where the model shall live.

    Raises:
        ModelNotFoundError: Nothing has that name, or no file is there.
        CheckpointError: The weights are damaged or do not fit their card.
    """
    from fastsam3d.model.checkpoint import (  # noqa: PLC0415 (loads torch)
        check_fit,
        parse_state,
        read_verified,
    )

    path = find_weights(name_or_path)
    with ThreadPoolExecutor(1) as beside:
        # Reading and hashing leave Python's lock to the building of modules.
        reading = beside.submit(read_verified, path)
        try:
            model = _build_empty(path)
        finally:  # what is wrong with the file itself is told first
            state = parse_state(*reading.result(), path)
    check_fit(model, state, path)
    # The tensors just read become the parameters; a copy would double time and memory.
    model.load_state_dict(state, strict=True, assign=True)
    model = _laid_out(model.eval().to(device))
    if model.config.family == "hr":
        cast("HighResSam3D", model).decoder.is_limited = str(device).startswith("cpu")
    return model


def _build_empty(path: Path) -> Model:
    """Build the network of a weights file; its weights are as the memory was."""
    from fastsam3d.model.checkpoint import check_trunk  # noqa: PLC0415 (loads torch)
    from fastsam3d.model.layers import without_random_weights  # noqa: PLC0415

    card = read_card(path)
    check_trunk(card, path)
    with without_random_weights():
        return _build(card.architecture)


def _laid_out(model: Model) -> Model:
    """Return `model` in the memory layout that suits it.

    Channels last spares the convolutional variants a copy before and after every channel norm.
    """
    import torch  # noqa: PLC0415 (listing models must not load it)

    if model.config.family == "hr":
        # torch's stubs know this overload for tensors only.
        cast("Any", model).to(memory_format=torch.channels_last_3d)
    return model


def describe_models() -> list[dict[str, Any]]:
    """Return one row per known model, as plain data, without loading torch.

    Returns:
        Rows with ``name``, ``family``, ``is_default``, ``image_size``, ``embed_dim``, ``depth``,
        ``num_heads``, ``has_weights``, ``weights_bytes`` (None without weights), ``licence`` and
        ``quantisation``.
    """
    return [_describe(MODEL_CONFIGS[name]) for name in list_models()]


def describe_model(name_or_path: str | Path) -> dict[str, Any]:
    """Return the card and the file facts of one model, as plain data, without loading torch.

    A registered name without weights gives its row of `describe_models` and its architecture.

    Raises:
        ModelNotFoundError: Nothing has that name, or no file is there.
        CheckpointError: The card is missing or breaks a rule of the format.
    """
    if isinstance(name_or_path, str) and name_or_path in MODEL_CONFIGS:
        config = MODEL_CONFIGS[name_or_path]
        if bundled_weights(name_or_path) is None:
            return {**_describe(config), "architecture": config.to_dict()}
    path = find_weights(name_or_path)
    facts = {"path": str(path), "weights_bytes": path.stat().st_size, "has_weights": True}
    return {**read_card(path).to_dict(), **facts}


def verify_weights(name_or_path: str | Path) -> dict[str, Any]:
    """Check that weights are whole, belong to their card and fill the network it describes.

    Returns:
        ``name``, ``path``, ``sha256``, ``num_tensors``, ``num_parameters`` and ``quantisation``.

    Raises:
        ModelNotFoundError: Nothing has that name, or no file is there.
        CheckpointError: Anything is wrong; the message says what.
    """
    model = load_model(name_or_path)
    path = find_weights(name_or_path)
    card = read_card(path)
    return {
        "name": card.name,
        "path": str(path),
        "sha256": card.sha256,
        "num_tensors": len(model.state_dict()),
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "quantisation": card.quantisation,
    }


def _describe(config: ModelConfig) -> dict[str, Any]:
    path = bundled_weights(config.name)
    card = read_card(path) if path else None
    return {
        "name": config.name,
        "family": config.family,
        "is_default": config.name == DEFAULT_MODEL,
        "image_size": config.image_size,
        "embed_dim": config.embed_dim,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "has_weights": path is not None,
        "weights_bytes": path.stat().st_size if path else None,
        "licence": card.licence if card else None,
        "quantisation": card.quantisation if card else None,
    }
