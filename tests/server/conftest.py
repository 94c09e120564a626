"""A server with a toy model: in process (`client`), and on a real loopback port (`live`)."""

import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient

from fastsam3d.server.app import create_app
from fastsam3d.server.host import ModelFacts, ModelHost
from fastsam3d.server.run import server_config
from fastsam3d.server.settings import ServerSettings
from fastsam3d.wire.volumes import volume_to_bytes
from tests.session.phantoms import ball_volume, fake_predictor

KEY = "a-key-for-tests-only"
SOCKET = "ws://127.0.0.1:1527/api/v1/session/ws"  # starlette's client has another host


def toy_host(settings: ServerSettings) -> ModelHost:
    """A host whose model finds what is bright; ROI side 32, a click costs a millisecond."""
    facts = ModelFacts(name="toy", id="0" * 64, license="Apache-2.0")
    return ModelHost(fake_predictor(), facts, settings)


def toy_app(**options):
    settings = ServerSettings(**({"max_sessions": 4, "threads": 1} | options))
    return create_app(settings, toy_host(settings))


def in_process(app, **options):
    """A client of an app, which starts and stops with the `with` block."""
    return TestClient(app, base_url="http://127.0.0.1:1527", **options)


@dataclass(frozen=True)
class Live:
    """A server on a loopback port."""

    url: str
    port: int
    app: object


def run_live(app):
    """Serve an app on a free port; yields a `Live`, stops at the end."""
    server = uvicorn.Server(server_config(app, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.started
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Live(f"http://127.0.0.1:{port}", port, app)
    finally:
        server.should_exit = True
        thread.join(15)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def phantom():
    """A bright ball of radius 9.3 mm around RAS (30.2, 29.7, 30.4), 60^3 voxels of 1 mm."""
    return ball_volume()


@pytest.fixture(scope="session")
def phantom_nii(phantom) -> bytes:
    """The phantom as an uncompressed NIfTI file."""
    return volume_to_bytes(phantom)


@pytest.fixture
def client():
    """A client in the same process, of a fresh server."""
    with in_process(toy_app()) as found:
        yield found


@pytest.fixture
def lease(client):
    """Headers of a fresh session of `client`."""
    token = client.post("/api/v1/sessions").json()["lease"]
    return {"X-Lease-Token": token}


@pytest.fixture
def opened(client, lease, phantom_nii):
    """Headers of a session of `client` that has the phantom as its volume."""
    client.put("/api/v1/session/volume", content=phantom_nii, headers=lease).raise_for_status()
    return lease


@pytest.fixture(scope="session")
def live():
    """A server on a real loopback port, shared by all tests: begin and end sessions of your own."""
    yield from run_live(toy_app(port=0, max_sessions=64))


@pytest.fixture
def rng():
    return np.random.default_rng(7)
