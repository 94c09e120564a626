"""What the pages about the server say is so."""

import re
from pathlib import Path

from fastsam3d.io import write_volume
from fastsam3d.server import errors, native_messages
from fastsam3d.server.settings import ServerSettings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/server.md").read_text(encoding="utf-8")
API = (ROOT / "docs/server-api.md").read_text(encoding="utf-8")
CORE = ("app", "errors", "host", "leases", "native", "native_calls", "native_ops", "native_ws",
        "queue", "room", "security", "uploads")  # fmt: skip


def test_the_example_runs(live, phantom, tmp_path, monkeypatch, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    write_volume(phantom, "ct.nii.gz")
    exec(block.replace("http://127.0.0.1:1527", live.url), {})  # noqa: S102
    assert "Region" in capsys.readouterr().out


def test_every_code_that_the_server_gives_is_listed():
    listed = set(re.findall(r"`([a-z_]+)`", API.split("## Codes")[1]))
    given = {code for _, _, code in errors._CODES} | set(errors._HTTP_CODES.values())
    for name in CORE:
        text = (ROOT / f"src/fastsam3d/server/{name}.py").read_text(encoding="utf-8")
        given |= set(re.findall(r'ApiError\(\s*\d+, "([a-z_]+)"', text))
    assert given == listed


def test_every_request_is_listed():
    listed = set(re.findall(r"`([a-z]+(?:\.[a-z]+)?)`", "".join(re.findall(r"^\| `.*", API, re.M))))
    schema = native_messages._CALLS.json_schema()
    for found in schema["discriminator"]["mapping"]:
        assert found in listed, found


def test_the_limits_are_those_of_the_settings():
    settings = ServerSettings()
    assert settings.max_sessions == 16
    assert settings.max_upload_bytes == 2 * 2**30
    assert (settings.max_voxels, settings.max_open_voxels) == (2**29, 2**32)
    assert (settings.max_files, settings.max_message_bytes) == (5000, 16 * 2**20)
    assert (settings.queue_length, settings.session_queue_length) == (256, 32)
    assert (settings.stall_timeout_s, settings.upload_timeout_s) == (20, 600)
    assert (settings.total_cache_bytes, settings.session_cache_bytes) == (2 * 2**30, 2**29)
