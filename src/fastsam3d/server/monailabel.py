"""The MONAI Label wire protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter

if TYPE_CHECKING:
    from fastsam3d.server.services import Services


def create_router(services: Services) -> APIRouter:  # noqa: ARG001 - its routes will need them
    """Return the routes of the protocol.

    Args:
        services: The parts of the server.
    """
    return APIRouter(tags=["monailabel"])
