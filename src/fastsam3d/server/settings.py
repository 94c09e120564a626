"""What an operator decides, in one value; checked before anything starts."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from fastsam3d.errors import ConfigError
from fastsam3d.server import arena

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT_PORT: Final = 1527
MIN_KEY_CHARACTERS: Final = 16
LOOPBACK_NAMES: Final = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Configuration of a server.

    Attributes:
        host: Address to listen on; others than loopback need an `api_key`.
        port: TCP port; 0 takes a free one.
        model: Name of the weights, or path of a .safetensors file.
        device: Where to compute.
        api_key: What clients send as ``Authorization: Bearer KEY``; None for none.
        max_sessions: Leases at a time.
        idle_s: A session without work for so long is closed.
        liveness_s: A session without any sign of its client for so long is closed.
        max_upload_bytes: Largest body of a request.
        max_message_bytes: Largest JSON body and WebSocket message.
        max_files: Files of one upload, such as slices of a series.
        max_voxels: Largest volume; its file may hold four bytes a voxel.
        max_open_voxels: Largest sum over the volumes of all sessions.
        max_objects: Objects of one session.
        upload_timeout_s: An upload that takes longer is given up.
        stall_timeout_s: An upload that pauses for longer is given up.
        queue_length: Jobs that wait for the engine, over all sessions.
        session_queue_length: Jobs of one session that wait for the engine.
        predict_timeout_s: A job that has no result by then is answered with an error.
        read_timeout_s: A file that takes longer to read, or so many seconds of computing, is given
            up.
        shutdown_s: On a stop, running work may take so long to end.
        session_cache_bytes: Embeddings at hand of one session.
        total_cache_bytes: Embeddings at hand of all sessions; the longest unused go first.
        session_state_bytes: Earlier answers at hand of one session.
        allowed_hosts: Names, beside loopback and `host`, that clients may call the server by.
        allowed_origins: Web pages of other origins that may use it, such as
            ``https://viewer.example``.
        threads: Threads of the engine; None leaves torch's choice.
        engine_process: Run the model in a process of its own, whose end the sessions survive. None
            does so where it costs little: on Linux, with the model on a CPU.
        dicomweb_url: Root of a DICOMweb service that series may be taken from; None for none.
        datastore_dir: Folder where clients of MONAI Label keep images and labels; None for none.
        ohif_dir: Folder of the OHIF page that comes with MONAI Label, to be served at ``/ohif/``
            with the images of `dicomweb_url`; None for none.

    Raises:
        ConfigError: A value is out of range, or a public address has no key.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    model: str = "hr_s"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    api_key: str | None = field(default=None, repr=False)
    max_sessions: int = 16
    idle_s: float = 600.0
    liveness_s: float = 60.0
    max_upload_bytes: int = 2 * 2**30
    max_message_bytes: int = 16 * 2**20
    max_files: int = 5000
    max_voxels: int = 2**29
    max_open_voxels: int = 2**32
    max_objects: int = 256
    upload_timeout_s: float = 600.0
    stall_timeout_s: float = 20.0
    queue_length: int = 256
    session_queue_length: int = 32
    predict_timeout_s: float = 120.0
    read_timeout_s: float = 120.0
    shutdown_s: float = 10.0
    session_cache_bytes: int = 2**29
    total_cache_bytes: int = 2 * 2**30
    session_state_bytes: int = 64 * 2**20
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    threads: int | None = None
    engine_process: bool | None = None
    dicomweb_url: str | None = None
    datastore_dir: Path | None = None
    ohif_dir: Path | None = None

    def __post_init__(self) -> None:
        """Check ranges, names and the key."""
        if not 0 <= self.port <= 65_535:
            raise ConfigError(f"Port must be 0 to 65535, got {self.port}; choose another.")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{name} must be above 0, got {value!r}; correct it.")
        for origin in self.allowed_origins:
            if "*" in origin or not origin.startswith(("http://", "https://")) or origin[-1] == "/":
                message = f"An origin looks like https://viewer.example, got {origin!r}; name it."
                raise ConfigError(message)
        if any(not name or "*" in name or "/" in name for name in self.allowed_hosts):
            message = f"Hosts are plain names without port, got {self.allowed_hosts}; name each."
            raise ConfigError(message)
        self._check_key()

    def _check_key(self) -> None:
        if self.api_key is None:
            if not is_loopback(self.host):
                message = (
                    f"Listening on {self.host} would let the whole network in without a key; give "
                    "an API key, or listen on 127.0.0.1."
                )
                raise ConfigError(message)
            return
        is_header = self.api_key.isascii() and self.api_key.isprintable()
        if len(self.api_key) < MIN_KEY_CHARACTERS or not is_header or " " in self.api_key:
            message = (
                f"An API key has at least {MIN_KEY_CHARACTERS} ASCII characters without spaces; "
                "make one with: python -c 'import secrets; print(secrets.token_urlsafe())'"
            )
            raise ConfigError(message)

    def has_engine_process(self, device: str) -> bool:
        """Whether the model runs in a process of its own.

        Args:
            device: Type of the model's device, ``cpu`` or ``cuda``.

        Raises:
            ConfigError: It is asked for where it cannot be.
        """
        if self.engine_process and not arena.IS_SUPPORTED:
            message = "A process for the engine needs Linux; use --no-engine-process."
            raise ConfigError(message)
        if self.engine_process is None:
            return arena.IS_SUPPORTED and device == "cpu"
        return self.engine_process

    @property
    def max_volume_bytes(self) -> int:
        """Largest volume in bytes of voxels, as its file holds them."""
        return 4 * self.max_voxels

    @property
    def hosts(self) -> frozenset[str]:
        """Names that a request may call the server by, lower case, without ports."""
        own = () if self.host in {"0.0.0.0", "::"} else (self.host,)  # noqa: S104 - not a bind
        return frozenset(name.lower() for name in (*LOOPBACK_NAMES, *own, *self.allowed_hosts))


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


_POSITIVE: Final = (
    "max_sessions", "idle_s", "liveness_s", "max_upload_bytes", "max_message_bytes", "max_files",
    "max_voxels", "max_open_voxels", "max_objects", "upload_timeout_s", "stall_timeout_s",
    "queue_length", "session_queue_length", "predict_timeout_s", "read_timeout_s", "shutdown_s",
    "session_cache_bytes", "total_cache_bytes", "session_state_bytes", "threads",
)  # fmt: skip
