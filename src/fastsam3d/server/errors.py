"""What a client is told when something goes wrong: a status, a code, a sentence; never more.

Every error reply is ``{"error": {"code", "message"}}``. Codes are part of the API, messages not.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, cast

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from fastsam3d.errors import (
    CheckpointError,
    ConfigError,
    EngineCrashedError,
    FastSAM3DError,
    GeometryError,
    PromptError,
    SessionStateError,
    VolumeReadError,
    VolumeTooLargeError,
    VolumeWriteError,
    WireError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi import FastAPI, Request

logger = logging.getLogger(__name__)

MAX_MESSAGE: Final = 500
RETRY_SOON_S: Final = 1
RETRY_LATER_S: Final = 10


class ApiError(HTTPException):
    """Something that a client is told.

    An `HTTPException`, because those alone pass through a framework's own parsing of bodies.

    Args:
        status: HTTP status.
        code: For programs, in snake_case.
        message: For people, one sentence.
        headers: Of the reply.
    """

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.code = code
        self.headers: dict[str, str] = dict(headers or {})

    @property
    def status(self) -> int:
        """HTTP status."""
        return self.status_code

    @property
    def message(self) -> str:
        """For people, one sentence."""
        return self.detail

    def __str__(self) -> str:
        """Return the sentence."""
        return self.detail

    def to_plain(self) -> dict[str, Any]:
        """Return the body of the reply."""
        return {"error": {"code": self.code, "message": self.message}}


# Subclasses before their bases.
_CODES: Final[tuple[tuple[type[BaseException], int, str], ...]] = (
    (VolumeTooLargeError, 413, "too_large"),
    (VolumeReadError, 422, "volume_unreadable"),
    (GeometryError, 422, "bad_geometry"),
    (VolumeWriteError, 422, "not_writable"),
    (PromptError, 422, "bad_prompt"),
    (SessionStateError, 409, "bad_state"),
    (ConfigError, 422, "bad_value"),
    (WireError, 400, "bad_message"),
    (CheckpointError, 503, "model_failed"),
    (EngineCrashedError, 503, "engine_crashed"),
    (FastSAM3DError, 422, "refused"),
)
_HTTP_CODES: Final = {
    400: "bad_request",
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    408: "too_slow",
    413: "too_large",
    415: "unsupported_type",
    416: "bad_range",
}


def to_api_error(error: BaseException) -> ApiError:
    """Return what a client is told about any error; unexpected ones are logged here."""
    if isinstance(error, ApiError):
        return error
    for kind, status, code in _CODES:
        if isinstance(error, kind):
            retry = {"Retry-After": str(RETRY_SOON_S)} if kind is EngineCrashedError else None
            return ApiError(status, code, _short(str(error)), retry)
    if isinstance(error, HTTPException):
        code = _HTTP_CODES.get(error.status_code, "refused")
        return ApiError(error.status_code, code, _short(str(error.detail)), error.headers)
    if isinstance(error, RequestValidationError):
        return invalid_request(cast("list[dict[str, Any]]", list(error.errors())))
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        logger.error("Out of memory: %s", error)
        message = "The server ran out of memory for this request; close objects or try again later."
        return ApiError(503, "out_of_memory", message, {"Retry-After": str(RETRY_LATER_S)})
    logger.error("Unexpected error", exc_info=error)
    message = "The server failed on this request and has written why to its log; others go on."
    return ApiError(500, "internal", message)


def invalid_request(problems: list[dict[str, Any]]) -> ApiError:
    """Return what a client is told about values that break the API's types."""
    first = problems[0]
    where = ".".join(str(part) for part in first.get("loc", ()))
    return ApiError(422, "invalid_request", _short(f"{where}: {first.get('msg', 'not valid')}."))


def install_handlers(app: FastAPI) -> None:
    """Answer every error of an app in the one form."""

    def answer(_: Request, error: Exception) -> JSONResponse:
        known = to_api_error(error)
        return JSONResponse(known.to_plain(), known.status, known.headers)

    for kind in (ApiError, FastSAM3DError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, answer)


def _short(message: str) -> str:
    """Return a message that is safe to show: one line of bounded length."""
    line = "".join(c if c.isprintable() else " " for c in message)
    return line if len(line) <= MAX_MESSAGE else f"{line[: MAX_MESSAGE - 1]}…"
