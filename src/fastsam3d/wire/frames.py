"""Binary messages: a short JSON header and a payload behind it.

``u32`` little endian length of the header, the header as UTF-8 JSON, the payload.
"""

from __future__ import annotations

import json
import struct
from typing import Any, Final, cast

from fastsam3d.errors import WireError

MAX_HEADER_BYTES: Final = 64 * 1024
_LENGTH: Final = struct.Struct("<I")


def pack_frame(header: dict[str, Any], payload: bytes) -> bytes:
    """Return a header and its payload as one message."""
    text = json.dumps(header, allow_nan=False, separators=(",", ":")).encode()
    return b"".join((_LENGTH.pack(len(text)), text, payload))


def unpack_frame(message: bytes) -> tuple[dict[str, Any], memoryview]:
    """Split a message that may come from anyone.

    Returns:
        The header, and a view of the payload.

    Raises:
        WireError: It is cut off, or its header is too long or no JSON object.
    """
    if len(message) < _LENGTH.size:
        raise WireError(f"A binary message has at least 4 bytes, got {len(message)}.")
    (length,) = _LENGTH.unpack_from(message)
    stop = _LENGTH.size + length
    if length > MAX_HEADER_BYTES or stop > len(message):
        raise WireError(f"A header of {length} bytes does not fit a message of {len(message)}.")
    try:
        header: object = json.loads(message[_LENGTH.size : stop])
    except (ValueError, RecursionError) as error:
        raise WireError(f"The header of a binary message is not JSON ({error}).") from error
    if not isinstance(header, dict):
        raise WireError("The header of a binary message must be a JSON object.")
    return cast("dict[str, Any]", header), memoryview(message)[stop:]
