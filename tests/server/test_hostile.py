"""What strangers may send: a typed answer each, and nobody else notices.

Every test runs beside a session of another client, whose next click must give the same mask.
"""

import contextlib
import gzip
import json
import socket
import struct
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import urllib3
from starlette.websockets import WebSocketDisconnect

from fastsam3d.client import RemoteSession
from fastsam3d.server import run, security
from fastsam3d.wire.volumes import volume_to_bytes
from tests.server.conftest import KEY, SOCKET, in_process, run_live, toy_app
from tests.session.phantoms import ball_volume

API = "/api/v1"
CENTRE = {"type": "point", "frame": "voxel", "at": [30, 30, 30]}


@pytest.fixture(scope="module", autouse=True)
def own_scratch(tmp_path_factory):
    """Keep scratch folders of this process apart from those of tests that run beside it."""
    before, tempfile.tempdir = tempfile.tempdir, str(tmp_path_factory.mktemp("scratch"))
    yield
    tempfile.tempdir = before


@pytest.fixture(scope="module")
def bystander(live, phantom):
    with RemoteSession(live.url) as session:
        session.set_volume(phantom)
        yield session, session.add_point((30, 30, 30)).mask.array


@pytest.fixture(autouse=True)
def nobody_else_notices(bystander):
    session, before = bystander
    folders = scratch_folders()
    yield
    session.reset()
    np.testing.assert_array_equal(session.add_point((30, 30, 30)).mask.array, before)
    deadline = time.monotonic() + 5  # a dead upload's folder goes in a thread of its own
    while not scratch_folders() <= folders and time.monotonic() < deadline:
        time.sleep(0.02)
    assert scratch_folders() <= folders


@pytest.fixture
def tenant(live):
    """Headers of a session of the shared server."""
    reply = urllib3.request("POST", f"{live.url}{API}/sessions")
    headers = {"X-Lease-Token": reply.json()["lease"]}
    yield headers
    urllib3.request("DELETE", f"{live.url}{API}/session", headers=headers)


def scratch_folders():
    return {path.name for path in Path(tempfile.gettempdir()).glob("fastsam3d-*")}


def ask(live, method, path, headers=None, body=None):
    return urllib3.request(
        method, live.url + path, headers=headers, body=body, timeout=20, retries=False
    )


def code(reply):
    told = reply.json()["error"]
    assert not any(word in told["message"] for word in (tempfile.gettempdir(), "Traceback", ".py"))
    return reply.status, told["code"]


def put(live, tenant, content, query=""):
    return ask(live, "PUT", f"{API}/session/volume{query}", tenant, content)


def raw(live, data, wait=5.0):
    """Send bytes to the server and return the first line of what it says."""
    with socket.create_connection(("127.0.0.1", live.port), timeout=wait) as stream:
        stream.sendall(data)
        with contextlib.suppress(OSError):
            return stream.recv(4096).split(b"\r\n", 1)[0]


# Volumes


def nifti(shape=(4, 4, 4), **changes):
    """Return the bytes of a NIfTI-1 file with a header as wished and no voxels."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, len(shape), *shape, *([1] * (7 - len(shape))))
    struct.pack_into("<hh", header, 70, changes.get("datatype", 4), 16)
    struct.pack_into("<8f", header, 76, 1, *changes.get("pixdim", (1, 1, 1)), 0, 0, 0, 0)
    struct.pack_into("<f", header, 108, 352)
    header[344:348] = b"n+1\0"
    return bytes(header)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(b"", (400, "bad_request"), id="empty"),
        pytest.param(b"PK\3\4" + bytes(99), (415, "unsupported_type"), id="zip"),
        pytest.param(b"\x89PNG\r\n" + bytes(99), (415, "unsupported_type"), id="png"),
        pytest.param(b"<html>" + bytes(99), (415, "unsupported_type"), id="html"),
        pytest.param(gzip.compress(b"PK\3\4"), (415, "unsupported_type"), id="zip in gzip"),
        pytest.param(b"\x1f\x8b" + bytes(50), (415, "unsupported_type"), id="broken gzip"),
        pytest.param(nifti((30000,) * 3), (413, "too_large"), id="27 trillion voxels"),
        pytest.param(nifti((64, 64, 64)), (422, "volume_unreadable"), id="no voxels"),
        pytest.param(nifti((0, 4, 4)), (422, "volume_unreadable"), id="no size"),
        pytest.param(nifti((-4, 4, 4)), (422, "volume_unreadable"), id="negative size"),
        pytest.param(
            nifti(pixdim=(float("nan"), 1, 1)) + bytes(128), (422, "bad_geometry"), id="NaN spacing"
        ),
        pytest.param(nifti(datatype=128) + bytes(192), (422, "volume_unreadable"), id="RGB"),
        pytest.param(nifti((4, 4, 4, 3)) + bytes(384), (422, "volume_unreadable"), id="4-D"),
        pytest.param(
            gzip.compress(nifti((900, 900, 900)) + bytes(2**20)),
            (422, "volume_unreadable"),
            id="cut off in gzip",
        ),
        pytest.param(
            b"NRRD0004\ntype: short\ndimension: 3\nsizes: 40000 40000 40000\nencoding: raw\n\n",
            (422, "volume_unreadable"),
            id="huge nrrd",
        ),
        pytest.param(
            b"NRRD0004\ntype: short\ndimension: 3\nsizes: 4 4 4\nspacings: 1 1 1\nencoding: raw\n"
            b"data file: ../../../../etc/passwd\n",
            (422, "volume_unreadable"),
            id="nrrd of another file",
        ),
        pytest.param(
            b"ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_UCHAR\n"
            b"ElementDataFile = /etc/passwd\n",
            (422, "volume_unreadable"),
            id="mhd of another file",
        ),
    ],
)
def test_files_that_are_not_one_volume(live, tenant, content, expected):
    assert code(put(live, tenant, content)) == expected


def test_a_file_that_inflates_to_more_than_it_may(live, tenant):
    bomb = gzip.compress(nifti((1023, 1023, 1023)) + bytes(2**24))
    assert len(bomb) < 2**15
    assert code(put(live, tenant, bomb))[0] in {413, 422}


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a%00b.nii", "CON", "a" * 4000, "%E2%80%AEiin.exe", "x%0d%0ay"]
)
def test_names_never_become_paths(live, tenant, name, phantom_nii):
    assert put(live, tenant, phantom_nii, f"?name={name}").status == 200


def test_more_bytes_than_allowed_whether_announced_or_not(phantom_nii):
    for small in run_live(toy_app(port=0, max_upload_bytes=10_000)):
        lease = ask(small, "POST", f"{API}/sessions").json()["lease"]
        headers = {"X-Lease-Token": lease}
        assert code(put(small, headers, phantom_nii)) == (413, "too_large")
        chunks = (phantom_nii[n : n + 1000] for n in range(0, 50_000, 1000))
        with contextlib.suppress(urllib3.exceptions.HTTPError):  # it may hang up while we send
            assert code(put(small, headers, chunks)) == (413, "too_large")
        assert ask(small, "GET", "/healthz").status == 200


# Multipart


def multipart(*parts, end=b"--b--\r\n", header=b""):
    body = b"".join(
        b'--b\r\nContent-Disposition: form-data; name="files"; filename="../../%d"\r\n%s\r\n%s\r\n'
        % (n, header, part)
        for n, part in enumerate(parts)
    )
    return body + end


def post(live, tenant, body, kind="multipart/form-data; boundary=b"):
    return ask(live, "POST", f"{API}/session/volume", tenant | {"Content-Type": kind}, body)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(multipart(b"x", end=b""), (400, "bad_request"), id="no end"),
        pytest.param(b"", (400, "bad_request"), id="nothing"),
        pytest.param(b"--b--\r\n", (400, "bad_request"), id="no part"),
        pytest.param(b"garbage" * 99, (400, "bad_request"), id="garbage"),
        pytest.param(
            multipart(b"x", header=b"X-A: " + b"y" * 2**20 + b"\r\n"),
            (400, "bad_request"),
            id="a header of 1 MB",
        ),
        pytest.param(multipart(*[b"x"] * 6000), (413, "too_many_files"), id="6000 parts"),
        pytest.param(multipart(b"x", b"y"), (415, "unsupported_type"), id="no images"),
    ],
)
def test_multipart_bodies_out_of_bounds(live, tenant, body, expected):
    begun = time.monotonic()
    assert code(post(live, tenant, body)) == expected
    assert time.monotonic() - begun < 5


def test_multipart_without_a_boundary(live, tenant):
    reply = post(live, tenant, b"x", "multipart/form-data")
    assert code(reply) == (415, "unsupported_type")


def test_a_header_and_its_data_are_read_under_names_of_ours(live, tenant):
    header = (
        b"ObjectType = Image\nNDims = 3\nDimSize = 8 9 10\nElementSpacing = 1 2 3\n"
        b"ElementType = MET_UCHAR\nElementDataFile = ../../etc/passwd\n"
    )
    for parts in ((header, bytes(720)), (bytes(720), header)):
        reply = post(live, tenant, multipart(*parts))
        assert reply.status == 200, reply.data
        assert reply.json()["shape"] == [8, 9, 10]


# Requests


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ({"at": [300, 30, 30]}, "bad_prompt"),
        ({"at": [-2, 30, 30]}, "bad_prompt"),
        ({"at": [1e308, 1e308, 1e308]}, "bad_prompt"),
        ({"at": [1e308, 0, 0], "frame": "RAS"}, "bad_prompt"),
        ({"at": [1, 2]}, "invalid_request"),
        ({"at": [True, 1, 1]}, "invalid_request"),
        ({"at": ["1", 1, 1]}, "invalid_request"),
        ({"frame": "LAS"}, "invalid_request"),
        ({"positive": 1}, "invalid_request"),
        ({"type": "pointer"}, "invalid_request"),
        ({"extra": 1}, "invalid_request"),
        ({"type": "box", "start": [5, 5, 5], "stop": [5, 9, 9]}, "invalid_request"),
        ({"type": "mask", "shape": [1290] * 3, "affine": np.eye(4).tolist(), "runs": [1290**3],
          "at": None, "frame": None}, "invalid_request"),
    ],
)  # fmt: skip
def test_prompts_that_cannot_be(client, opened, prompt, expected):
    call(client, opened, {"type": "object.add"})
    body = {"type": "prompt.add", "object": 1, "prompts": [CENTRE | prompt]}
    reply = call(client, opened, body)
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, expected)


def call(client, headers, body):
    return client.post(f"{API}/session/call", json=body, headers=headers)


def test_a_mask_of_another_grid_is_refused_before_it_is_unpacked(client, opened):
    call(client, opened, {"type": "object.add"})
    mask = {"type": "mask", "shape": [1290] * 3, "affine": np.eye(4).tolist(), "runs": [1290**3]}
    body = {"type": "prompt.add", "object": 1, "prompts": [mask]}
    begun = time.monotonic()
    reply = call(client, opened, body)
    assert reply.json()["error"]["code"] == "bad_prompt"
    assert time.monotonic() - begun < 1


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"null", b"[]", b'{"type": "undo", "seq": -1}', b'{"type": "object.delete"}',
        b'{"type": "object.lock", "object": 1e999}', b'{"type": "object.lock", "object": NaN}',
        b'{"type": "object.lock", "object": 9999999999999999999999}', b"\xff\xfe", b"[" * 100_000,
        b'{"type": "object.add", "colour": [0, 0, 256]}', b'{"type": "candidate.choose"}',
    ],
)  # fmt: skip
def test_text_that_is_no_request(live, tenant, phantom_nii, text):
    assert put(live, tenant, phantom_nii).status == 200
    headers = tenant | {"Content-Type": "application/json"}
    reply = ask(live, "POST", f"{API}/session/call", headers, text)
    assert reply.status in {400, 422}
    assert code(reply)[1] in {"invalid_request", "bad_request"}


def test_ten_thousand_points_at_once(client, opened):
    call(client, opened, {"type": "object.add"})
    body = {"type": "prompt.add", "object": 1, "prompts": [CENTRE] * 10_000}
    assert call(client, opened, body).json()["error"]["code"] == "invalid_request"


def test_contradicting_clicks_are_answered_and_always_alike(client, opened):
    answers = []
    for key in (1, 2):
        call(client, opened, {"type": "object.add"})
        call(client, opened, {"type": "overlap.set", "overlap": "allow"})
        prompts = [CENTRE, CENTRE | {"positive": False}, CENTRE]
        reply = call(client, opened, {"type": "prompt.add", "object": key, "prompts": prompts})
        answers.append(reply.json()["masks"][0]["payload"])
    assert answers[0] == answers[1]


def test_an_object_that_is_not_there_or_locked(client, opened):
    assert call(client, opened, {"type": "object.lock", "object": 7}).status_code == 409
    call(client, opened, {"type": "object.add"})
    call(client, opened, {"type": "object.lock", "object": 1})
    reply = call(client, opened, {"type": "prompt.add", "object": 1, "prompts": [CENTRE]})
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "bad_state")


def test_more_objects_than_a_session_holds():
    with in_process(toy_app(max_objects=2)) as client:
        headers = {"X-Lease-Token": client.post(f"{API}/sessions").json()["lease"]}
        content = volume_to_bytes(ball_volume(shape=(16, 16, 16)))
        client.put(f"{API}/session/volume", content=content, headers=headers)
        told = [call(client, headers, {"type": "object.add"}).status_code for _ in range(3)]
    assert told == [200, 200, 409]


def test_requests_before_a_volume_and_after_the_end(client, lease):
    assert call(client, lease, {"type": "undo"}).json()["error"]["code"] == "no_volume"
    for path in ("study", "export", "volume.nii", "objects/1/mask.nii.gz"):
        assert client.get(f"{API}/session/{path}", headers=lease).status_code == 409
    assert client.delete(f"{API}/session", headers=lease).status_code == 204
    assert client.delete(f"{API}/session", headers=lease).status_code == 204
    reply = call(client, lease, {"type": "undo"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (410, "session_expired")
    assert client.get(f"{API}/session/study").status_code == 410


def test_no_session_reads_anothers_bytes(client, phantom_nii):
    one, two = ({"X-Lease-Token": client.post(f"{API}/sessions").json()["lease"]} for _ in range(2))
    other = volume_to_bytes(ball_volume(shape=(40, 40, 40), centre_mm=(20, 20, 20)))
    client.put(f"{API}/session/volume", content=phantom_nii, headers=one)
    client.put(f"{API}/session/volume", content=other, headers=two)
    call(client, one, {"type": "object.add", "name": "a secret"})
    assert client.get(f"{API}/session/volume.nii", headers=two).content == other
    assert client.get(f"{API}/session/study", headers=two).json()["objects"] == []
    assert "secret" not in client.get(f"{API}/session/study", headers=two).text
    assert client.get(f"{API}/session/objects/1/mask.nii.gz", headers=two).status_code == 409


# Who calls


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Host": "evil.example"}, "host_not_allowed"),
        ({"Host": "127.0.0.1.evil.example:80"}, "host_not_allowed"),
        ({"Host": "127.0.0.1@evil.example"}, "host_not_allowed"),
        ({"Host": "127.0.0.1/evil"}, "host_not_allowed"),
        ({"Host": ""}, "host_not_allowed"),
        ({"Origin": "https://evil.example"}, "origin_not_allowed"),
        ({"Origin": "null"}, "origin_not_allowed"),
        ({"Origin": "http://127.0.0.1:9"}, "origin_not_allowed"),
        ({"Origin": "http://localhost"}, "origin_not_allowed"),
    ],
)
@pytest.mark.parametrize("path", ["/", "/healthz", f"{API}/sessions", "/metrics"])
def test_foreign_names_and_pages_are_refused_everywhere(client, headers, expected, path):
    for method in ("GET", "POST", "OPTIONS"):
        reply = client.request(method, path, headers=headers)
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, expected)
        assert "access-control-allow-origin" not in reply.headers


def test_a_page_of_another_origin_gets_no_socket(client):
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
        connecting = client.websocket_connect(SOCKET, headers=headers)
        with pytest.raises(WebSocketDisconnect) as told, connecting:
            pass
        assert told.value.code == 1008


def test_a_simple_post_of_plain_text_does_nothing(client):
    headers = {"Content-Type": "text/plain"}
    body = json.dumps({"type": "undo"})
    page = headers | {"Origin": "https://evil.example"}
    assert client.post(f"{API}/sessions", content=body, headers=page).status_code == 403
    lease = client.post(f"{API}/sessions").json()["lease"]
    plain = headers | {"X-Lease-Token": lease}
    reply = client.post(f"{API}/session/call", content=body, headers=plain)
    assert reply.status_code == 422


def test_the_own_page_and_named_origins_may_call():
    app = toy_app(allowed_origins=("https://viewer.example",))
    with in_process(app) as client:
        own = {"Origin": "http://127.0.0.1:1527"}
        assert client.post(f"{API}/sessions", headers=own).status_code == 201
        named = client.post(f"{API}/sessions", headers={"Origin": "https://viewer.example"})
        assert named.headers["access-control-allow-origin"] == "https://viewer.example"
        assert "access-control-allow-credentials" not in named.headers
        preflight = {"Origin": "https://viewer.example", "Access-Control-Request-Method": "PUT"}
        assert client.options(f"{API}/session/volume", headers=preflight).status_code == 200


def test_without_the_key_nothing_but_health_and_the_page(phantom_nii):
    with in_process(toy_app(api_key=KEY)) as client:
        routes = [
            ("GET", "/metrics"), ("GET", f"{API}/openapi.json"), ("POST", f"{API}/sessions"),
            ("GET", "/info/"), ("POST", "/claim"), ("GET", "/nowhere"), ("POST", "/"),
        ]  # fmt: skip
        for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}):
            for method, path in routes:
                reply = client.request(method, path, headers=wrong, content=phantom_nii[:9])
                assert (reply.status_code, reply.json()["error"]["code"]) == (401, "unauthorized")
        assert client.get("/healthz").json() == {"ok": True}
        assert client.get("/").status_code == 200
        right = {"Authorization": f"Bearer {KEY}"}
        lease = client.post(f"{API}/sessions", headers=right).json()["lease"]
        for hello, expected in (
            ({"type": "hello", "lease": lease}, "unauthorized"),
            ({"type": "hello", "lease": lease, "key": "wrong"}, "unauthorized"),
            ({"type": "hello", "lease": "wrong", "key": KEY}, "session_expired"),
            ({"type": "undo", "lease": lease, "key": KEY}, "invalid_request"),
        ):
            with client.websocket_connect(SOCKET) as socket_:
                socket_.send_json(hello)
                assert socket_.receive_json()["error"]["code"] == expected


def test_pages_come_with_headers_that_keep_them_alone(client):
    for path in ("/", "/healthz", "/nowhere"):
        headers = client.get(path).headers
        for name, value in security.SECURITY_HEADERS.items():
            assert headers[name] == value
        assert "unsafe-eval" not in headers["content-security-policy"]
        assert "server" not in headers


# The protocol below


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"Content-Length: -5\r\n", b"400"),
        (b"Content-Length: 5\r\nContent-Length: 6\r\n", b"400"),
        (b"Content-Length: 99999999999999999999\r\n", b"4"),
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"4"),
        (b"X-Long: " + b"y" * 100_000 + b"\r\n", b"4"),
        (b"Range: bytes=" + b"0-1," * 10_000 + b"0-1\r\n", b"416"),
        (b"Host: evil.example\r\n", b"4"),
    ],
)
def test_heads_that_lie_or_never_end(live, head, status):
    line = raw(live, b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + head + b"\r\nhello")
    assert line is not None
    assert line.split(b" ")[1].startswith(status)


def test_a_client_that_dies_in_an_upload_frees_its_slot(live, tenant):
    head = f"PUT {API}/session/volume HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Lease-Token: "
    head += f"{tenant['X-Lease-Token']}\r\nContent-Length: 1000000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", live.port)) as stream:
        stream.sendall(head.encode() + bytes(100_000))
    room = live.app.state.leases.find(tenant["X-Lease-Token"]).room
    deadline = time.monotonic() + 5
    while room.is_busy and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not room.is_busy


def test_slow_clients_are_given_up(monkeypatch):
    monkeypatch.setattr(run, "HEADER_S", 0.3)
    for slow in run_live(toy_app(port=0, stall_timeout_s=0.3)):
        assert raw(slow, b"GET /healthz HTT") == b""
        assert raw(slow, b"") == b""
        lease = ask(slow, "POST", f"{API}/sessions").json()["lease"]
        head = f"PUT {API}/session/volume HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Lease-Token: {lease}\r\n"
        line = raw(slow, head.encode() + b"Content-Length: 1000\r\n\r\nx")
        assert line == b"HTTP/1.1 408 Request Timeout"
        with RemoteSession(slow.url) as session:  # its socket may be silent for longer
            session.set_volume(ball_volume(shape=(16, 16, 16)))
            time.sleep(0.6)
            assert session.add_point((8, 8, 8)) is not None


@pytest.mark.parametrize("first", ["", "hello", "{}", '{"type":"hello"}', "[" * 10_000, b"\0" * 99])
def test_sockets_that_begin_with_something_else(client, first):
    with client.websocket_connect(SOCKET) as socket_:
        socket_.send_text(first) if isinstance(first, str) else socket_.send_bytes(first)
        assert socket_.receive_json()["error"]["code"] == "invalid_request"
        assert socket_.receive()["code"] == 1008


def test_garbage_on_a_socket_is_answered_and_the_next_request_too(client, opened):
    with client.websocket_connect(SOCKET) as socket_:
        socket_.send_json({"type": "hello", "lease": opened["X-Lease-Token"]})
        socket_.receive_json()
        for text in ("", "null", "[" * 10_000, '{"type": "undo", "seq": 3.5}', '{"seq": 8}'):
            socket_.send_text(text)
            assert socket_.receive_json()["error"]["code"] == "invalid_request"
        socket_.send_bytes(b"\0\1\2")
        assert socket_.receive_json()["error"]["code"] == "invalid_request"
        socket_.send_json({"type": "undo", "seq": 9})
        reply = socket_.receive_json()
        assert (reply["seq"], reply["error"]["code"]) == (9, "bad_state")
        socket_.send_json({"type": "object.add", "seq": 10})
        assert socket_.receive_json()["result"] == {"object": 1}
