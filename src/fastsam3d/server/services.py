"""What the routes of every protocol share."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastsam3d.server.host import ModelHost
    from fastsam3d.server.leases import LeaseTable
    from fastsam3d.server.metrics import Metrics
    from fastsam3d.server.queue import EngineQueue
    from fastsam3d.server.readers import Readers
    from fastsam3d.server.settings import ServerSettings


@dataclass(frozen=True, kw_only=True)
class Services:
    """The parts of a running server.

    Attributes:
        settings: What the operator decided.
        host: The model.
        queue: The engine's thread.
        leases: Who is here.
        metrics: What is counted.
        readers: Read files that strangers send.
    """

    settings: ServerSettings
    host: ModelHost
    queue: EngineQueue
    leases: LeaseTable
    metrics: Metrics
    readers: Readers

    def is_key(self, given: str | None) -> bool:
        """Whether a client's key opens the server; always where it has none."""
        key = self.settings.api_key
        if key is None:
            return True
        return hmac.compare_digest(key.encode(), (given or "").encode("utf-8", "surrogateescape"))
