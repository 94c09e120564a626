"""The command as a user meets it: what it refuses, what it prints, and that it stops."""

import signal
import subprocess
import sys
import time

import pytest
import urllib3

from fastsam3d.cli.main import main
from tests.cli.weights import write_toy_weights

EVERYWHERE = "0.0.0.0"  # noqa: S104 - to be refused


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--host", EVERYWHERE], "API key"),
        (["--host", "192.0.2.1"], "API key"),
        (["--host", EVERYWHERE, "--api-key", "short"], "at least 16"),
        (["--allow-origin", "*"], "origin"),
        (["--port", "70000"], "Port"),
    ],
)
def test_what_is_not_safe_does_not_start(words, reason, capsys, monkeypatch):
    monkeypatch.delenv("FASTSAM3D_API_KEY", raising=False)
    assert main(["serve", *words]) == 1
    assert reason in capsys.readouterr().err


def test_a_taken_port_is_told_before_the_model_is_loaded(live, capsys):
    started = time.monotonic()
    assert main(["serve", "--port", str(live.port)]) == 1
    assert "--port" in capsys.readouterr().err
    assert time.monotonic() - started < 2


def test_it_serves_and_stops_when_told(tmp_path):
    weights = write_toy_weights(tmp_path / "toy.safetensors")
    words = ["serve", "--port", "0", "--threads", "1", "--model", str(weights)]
    code = f"from fastsam3d.cli.main import main; raise SystemExit(main({words!r}))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as done:
        assert done.stdout is not None
        line = done.stdout.readline()
        address = line.split(" at ")[1].split()[0]
        assert address.startswith("http://127.0.0.1:")
        assert urllib3.request("GET", f"{address}/healthz").json() == {"ok": True}
        told = time.monotonic()
        done.send_signal(signal.SIGTERM)
        done.wait(10)
        assert time.monotonic() - told < 10
