"""A remote session is a local one that computes elsewhere."""

import socket
import subprocess
import sys

import numpy as np
import pytest

from fastsam3d.client import RemoteSession
from fastsam3d.errors import (
    ConfigError,
    LeaseExpiredError,
    PromptError,
    ServerBusyError,
    ServerUnreachableError,
    SessionStateError,
    VolumeTooLargeError,
    WireError,
)
from fastsam3d.prompts import Box, Lasso, Point, PromptSet, Scribble
from fastsam3d.segmenter import Segmenter
from fastsam3d.session import Session
from tests.server.conftest import KEY, run_live, toy_app
from tests.session.phantoms import ball_volume, fake_predictor

PROMPTS = [
    Point.voxel((30, 30, 30)),
    Point.world((30.0, 45.0, 30.0), "RAS", positive=False),
    Box.voxel((18, 18, 18), (44, 44, 44)),
    Scribble.voxel([(28, 30, 30), (33, 30, 30)], axis=2, radius_mm=1.5),
    Lasso.world([(20, 20, 30), (40, 20, 30), (40, 40, 30), (20, 40, 30)], frame="RAS", axis=2),
]


@pytest.fixture
def remote(live):
    with RemoteSession(live.url) as session:
        yield session


def test_it_is_a_segmenter(remote):
    assert isinstance(remote, Segmenter)
    assert remote.model["name"] == "toy"


def test_every_answer_equals_that_of_a_local_session(remote):
    volume = ball_volume(spacing=(0.7, 1.0 / 3.0, 1.1), shape=(80, 160, 50))
    local = Session(fake_predictor())
    for session in (local, remote):
        session.set_volume(volume)
    kept = np.zeros(volume.shape, np.uint8)
    for prompt in PROMPTS:
        here, there = local.add(prompt), remote.add(prompt)
        for name in ("roi", "spacing_mm", "predicted_quality", "warnings"):
            assert getattr(here, name) == getattr(there, name), name
        np.testing.assert_array_equal(here.mask.array, there.mask.array)
        there.paste_changes(kept)
        np.testing.assert_array_equal(here.mask.array, kept)
    assert local.prompts == remote.prompts


def test_undo_reset_and_other_prompts_equal_a_local_session(remote, phantom):
    local = Session(fake_predictor())
    for session in (local, remote):
        session.set_volume(phantom)
        session.add_mask(phantom.new_mask((phantom.array > 500).astype(np.uint8)))
        session.add_point((30, 30, 30))
    for step in (
        lambda session: session.undo(),
        lambda session: session.predict(PromptSet((PROMPTS[0], PROMPTS[2]))),
        lambda session: session.undo(),
        lambda session: session.undo(),
        lambda session: session.add_point((30, 30, 30), positive=True),
    ):
        here, there = step(local), step(remote)
        assert (here is None) == (there is None)
        if here is not None:
            np.testing.assert_array_equal(here.mask.array, there.mask.array)
    remote.reset()
    assert remote.prediction is None


def test_it_refuses_as_a_local_session_does_and_stays_as_it_was(remote, phantom):
    with pytest.raises(SessionStateError, match="set_volume"):
        remote.add_point((1, 2, 3))
    remote.set_volume(phantom)
    with pytest.raises(SessionStateError, match="nothing to undo"):
        remote.undo()
    before = remote.add_point((30, 30, 30))
    with pytest.raises(PromptError, match="outside"):
        remote.add_point((300, 30, 30))
    with pytest.raises(PromptError, match="drop one"):
        remote.add_point(Point.voxel((1, 1, 1)), positive=False)
    with pytest.raises(PromptError):
        remote.predict(PromptSet())
    assert len(remote.prompts) == 1
    again = remote.predict(remote.prompts)
    np.testing.assert_array_equal(before.mask.array, again.mask.array)


def test_a_forgotten_session_says_so(live, phantom):
    with RemoteSession(live.url) as session:
        session.set_volume(phantom)
        live.app.state.leases.release(session._transport._lease)
        with pytest.raises(LeaseExpiredError, match="begin a new one"):
            session.add_point((30, 30, 30))
        with pytest.raises(LeaseExpiredError):
            session.set_volume(phantom)


def test_a_full_server_a_wrong_key_and_a_large_volume_are_told_apart(phantom):
    app = toy_app(port=0, max_sessions=1, api_key=KEY, max_voxels=1000)
    for live in run_live(app):
        with pytest.raises(WireError, match="API key"):
            RemoteSession(live.url, api_key="wrong")
        with RemoteSession(live.url, api_key=KEY) as first:
            with pytest.raises(ServerBusyError, match="in use"):
                RemoteSession(live.url, api_key=KEY)
            with pytest.raises(VolumeTooLargeError):
                first.set_volume(phantom)
            first.set_volume(ball_volume(shape=(10, 10, 10)))
            assert first.add_point((5, 5, 5)) is not None
        with RemoteSession(live.url, api_key=KEY) as second:
            assert second.prediction is None


def test_an_address_without_a_server_is_unreachable():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(ServerUnreachableError, match="fastsam3d serve"):
        RemoteSession(f"http://127.0.0.1:{port}")
    with pytest.raises(ConfigError, match="looks like"):
        RemoteSession("127.0.0.1:1527")


def test_a_session_outlives_a_broken_socket(remote, phantom):
    remote.set_volume(phantom)
    first = remote.add_point((30, 30, 30))
    remote._transport._socket.socket.shutdown(socket.SHUT_RDWR)
    with pytest.raises(ServerUnreachableError):
        remote.add_point((31, 30, 30))
    again = remote.predict(PromptSet((Point.voxel((30, 30, 30)),)))
    np.testing.assert_array_equal(first.mask.array, again.mask.array)


def test_the_client_loads_neither_torch_nor_readers_nor_a_server():
    heavy = ("torch", "SimpleITK", "pydicom", "scipy", "safetensors", "fastapi", "pydantic", "rich")
    code = (
        "import sys, numpy as np\n"
        "from fastsam3d.client import RemoteSession\n"
        "from fastsam3d import Geometry, Point, Volume\n"
        "volume = Volume(np.zeros((8, 8, 8), np.int16), Geometry((8, 8, 8), np.eye(4)))\n"
        "with RemoteSession(sys.argv[1]) as session:\n"
        "    session.set_volume(volume)\n"
        "    session.add_point((4, 4, 4))\n"
        f"print(*[name for name in {heavy!r} if name in sys.modules])"
    )
    for live in run_live(toy_app(port=0)):
        done = subprocess.run(
            [sys.executable, "-c", code, live.url], capture_output=True, text=True, check=True
        )
    assert done.stdout.split() == []
