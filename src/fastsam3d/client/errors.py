"""What a server refused, as the errors that a local session would raise."""

from __future__ import annotations

from typing import Any, Final, cast

from fastsam3d.errors import (
    CheckpointError,
    ConfigError,
    EngineCrashedError,
    FastSAM3DError,
    GeometryError,
    LeaseExpiredError,
    PromptError,
    ServerBusyError,
    SessionStateError,
    VolumeReadError,
    VolumeTooLargeError,
    WireError,
)

_ERRORS: Final[dict[str, type[FastSAM3DError]]] = {
    "at_capacity": ServerBusyError,
    "bad_geometry": GeometryError,
    "bad_prompt": PromptError,
    "bad_state": SessionStateError,
    "bad_value": ConfigError,
    "busy": ServerBusyError,
    "engine_crashed": EngineCrashedError,
    "model_failed": CheckpointError,
    "no_volume": SessionStateError,
    "out_of_memory": ServerBusyError,
    "session_closed": LeaseExpiredError,
    "session_expired": LeaseExpiredError,
    "stopping": ServerBusyError,
    "timeout": ServerBusyError,
    "too_large": VolumeTooLargeError,
    "volume_unreadable": VolumeReadError,
    "volumes_full": ServerBusyError,
}


def to_error(reply: Any) -> FastSAM3DError:
    """Return the error that a server's reply tells of.

    Args:
        reply: Parsed JSON, ``{"error": {"code", "message"}}``, from anyone.
    """
    try:
        told = cast("dict[str, Any]", reply["error"])
        code, message = str(told["code"]), str(told["message"])
    except (KeyError, TypeError):
        return WireError("The answer is not that of a fastsam3d server; check the address.")
    kind = _ERRORS.get(code)
    if kind is not None:
        return kind(message)
    return WireError(f"The server refused ({code}): {message}")
