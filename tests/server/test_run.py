"""Starting and stopping on a real port."""

import threading
import time

import pytest
import urllib3

from fastsam3d.client import RemoteSession
from fastsam3d.errors import ConfigError, ServerUnreachableError
from fastsam3d.server import run
from fastsam3d.server.settings import ServerSettings, is_loopback
from fastsam3d.wire.volumes import volume_to_bytes
from tests.server.conftest import KEY, run_live, toy_app
from tests.session.phantoms import ball_volume

EVERYWHERE = "0.0.0.0"  # noqa: S104 - to be refused


def test_a_request_in_progress_ends_before_the_server_does(monkeypatch):
    app = toy_app(port=0)
    model = app.state.host.predictor.model
    decode, begun = model.decode_masks, threading.Event()

    def slow(*args, **options):
        begun.set()
        time.sleep(0.4)
        return decode(*args, **options)

    answers = []

    def click(url):
        root, json = f"{url}/api/v1", {"type": "object.add"}
        headers = {"X-Lease-Token": urllib3.request("POST", f"{root}/sessions").json()["lease"]}
        content = volume_to_bytes(ball_volume(shape=(16, 16, 16), centre_mm=(8, 8, 8)))
        urllib3.request("PUT", f"{root}/session/volume", body=content, headers=headers)
        urllib3.request("POST", f"{root}/session/call", json=json, headers=headers)
        monkeypatch.setattr(model, "decode_masks", slow)
        prompts = [{"type": "point", "frame": "voxel", "at": [8, 8, 8]}]
        json = {"type": "prompt.add", "object": 1, "prompts": prompts}
        answers.append(urllib3.request("POST", f"{root}/session/call", json=json, headers=headers))

    for live in run_live(app):
        clicking = threading.Thread(target=click, args=(live.url,))
        clicking.start()
        assert begun.wait(10)
    clicking.join(10)
    assert answers[0].status == 200


def test_an_open_socket_does_not_keep_the_server(phantom):
    for live in run_live(toy_app(port=0)):
        session = RemoteSession(live.url)
        session.set_volume(phantom)
        told = time.monotonic()
    assert time.monotonic() - told < 5
    with pytest.raises(ServerUnreachableError):
        session.add_point((30, 30, 30))
    session.close()


def test_the_address_must_be_to_be_had(live):
    with pytest.raises(ConfigError, match="choose another --port"):
        run.bind(ServerSettings(port=live.port))
    with pytest.raises(ConfigError, match="Cannot listen"):
        run.bind(ServerSettings(host="256.1.1.1", api_key=KEY))
    with run.bind(ServerSettings(port=0)) as taken:
        assert taken.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize("host", [EVERYWHERE, "::", "192.0.2.7", "scan.example"])
def test_no_address_but_loopback_without_a_key(host):
    with pytest.raises(ConfigError, match="API key"):
        ServerSettings(host=host)
    assert host in {*ServerSettings(host=host, api_key=KEY).hosts, EVERYWHERE, "::"}
    assert EVERYWHERE not in ServerSettings(host=host, api_key=KEY).hosts


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST"])
def test_loopback_needs_none(host):
    assert is_loopback(host)
    ServerSettings(host=host)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"port": -1}, "Port"),
        ({"max_sessions": 0}, "max_sessions"),
        ({"idle_s": float("inf")}, "idle_s"),
        ({"allowed_hosts": ("*",)}, "plain names"),
        ({"allowed_origins": ("https://*.example",)}, "looks like"),
        ({"allowed_origins": ("null",)}, "looks like"),
        ({"api_key": "short"}, "at least 16"),
        ({"api_key": "a key with spaces in it"}, "without spaces"),
        ({"api_key": "ä" * 20}, "ASCII"),
    ],
)
def test_settings_that_make_no_sense(changes, reason):
    with pytest.raises(ConfigError, match=reason):
        ServerSettings(**changes)


def test_a_key_is_not_shown():
    assert KEY not in repr(ServerSettings(api_key=KEY))
