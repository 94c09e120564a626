"""``fastsam3d serve``: a page to click in, and a server for other programs."""

from __future__ import annotations

import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from fastsam3d.cli.progress import show_progress
from fastsam3d.cli.usage import Flag

Names = Annotated[tuple[str, ...], Parameter(negative="")]


@Parameter(name="*", group="Who may use it")
@dataclass(frozen=True, kw_only=True)
class AccessOptions:
    """Who may use the server.

    Attributes:
        host: Address to listen on. Others than 127.0.0.1 need an API key.
        port: TCP port; 0 takes a free one.
        api_key: What clients must send, at least 16 characters. Better given in the environment,
            where other users of the machine do not see it.
        allow_host: Another name that the server is called by, such as that of a reverse proxy.
            May be given several times.
        allow_origin: A web page of elsewhere that may use it, such as https://viewer.example.
            May be given several times.
    """

    host: str = "127.0.0.1"
    port: int = 1527
    api_key: Annotated[str | None, Parameter(env_var="FASTSAM3D_API_KEY")] = None
    allow_host: Names = ()
    allow_origin: Names = ()


@Parameter(name="*", group="Engine and limits")
@dataclass(frozen=True, kw_only=True)
class EngineLimits:
    """The engine and its limits.

    Attributes:
        model: Name of the weights, or path of a .safetensors file.
        device: Where to compute.
        threads: Threads of the engine; torch's choice by default.
        max_sessions: Clients at a time.
        max_upload_gib: Largest upload, in GiB.
        engine_process: Whether the model runs in a process of its own, whose crash ends no session;
            by default on Linux with the model on a CPU.
    """

    model: str = "hr_s"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
    max_sessions: int = 16
    max_upload_gib: float = 2.0
    engine_process: bool | None = None


@Parameter(name="*", group="Archives of MONAI Label clients")
@dataclass(frozen=True, kw_only=True)
class ArchiveOptions:
    """Where clients of the MONAI Label protocol take images from and leave labels.

    Attributes:
        dicomweb_url: Root of a DICOMweb service.
        datastore: Folder of images and labels.
        ohif: Folder of the OHIF page that comes with MONAI Label, to be served at /ohif/.
    """

    dicomweb_url: str | None = None
    datastore: Path | None = None
    ohif: Path | None = None


def serve(
    *,
    open: Flag = False,  # noqa: A002 - the option's name
    access: AccessOptions = AccessOptions(),
    engine: EngineLimits = EngineLimits(),
    archives: ArchiveOptions = ArchiveOptions(),
) -> None:
    """Serve a page to click in, and the protocols of other viewers.

    Ctrl+C stops it; requests in progress may end.

    Args:
        open: Open the page in the browser.
        access: Who may use it.
        engine: Which model, and how much.
        archives: For the MONAI Label protocol.
    """
    with show_progress("Loading the server") as progress:
        from fastsam3d.server.settings import ServerSettings

        settings = ServerSettings(
            host=access.host,
            port=access.port,
            model=engine.model,
            device=engine.device,
            api_key=access.api_key,
            max_sessions=engine.max_sessions,
            max_upload_bytes=round(engine.max_upload_gib * 2**30),
            allowed_hosts=access.allow_host,
            allowed_origins=access.allow_origin,
            threads=engine.threads,
            engine_process=engine.engine_process,
            dicomweb_url=archives.dicomweb_url,
            datastore_dir=archives.datastore,
            ohif_dir=archives.ohif,
        )
        _require_server()
        from fastsam3d.server import run

        taken = run.bind(settings)
        progress(f"Loading model {engine.model}")
        from fastsam3d.server.app import create_app

        app = create_app(settings)
    console = Console()

    def tell(port: int) -> None:
        shown = "127.0.0.1" if access.host in {"0.0.0.0", "::"} else access.host  # noqa: S104
        url = f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
        facts = app.state.host.facts
        line = f"fastsam3d serves {facts.name} at [bold]{url}[/bold] (Ctrl+C stops)"
        console.print(line, soft_wrap=True)
        console.print(f"[dim]{facts.notice}[/dim]", soft_wrap=True)
        if open:
            webbrowser.open(url)

    run.run(app, taken, tell)


def _require_server() -> None:
    from importlib.util import find_spec

    from fastsam3d.errors import ConfigError

    missing = [name for name in ("fastapi", "uvicorn", "websockets") if find_spec(name) is None]
    if missing:
        message = f"{', '.join(missing)} missing; pip install 'fastsam3d[server]'."
        raise ConfigError(message)
