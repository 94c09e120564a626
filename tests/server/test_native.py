"""The native API as a client meets it, in process, with a toy model."""

import base64
import json
import threading
import time

import numpy as np
import pytest
import urllib3
import websockets.sync.client

from fastsam3d.errors import CheckpointError
from fastsam3d.io import read_mask, read_volume
from fastsam3d.server import native_ws
from fastsam3d.volume import Geometry, Volume
from fastsam3d.wire.frames import unpack_frame
from fastsam3d.wire.masks import decode_runs
from fastsam3d.wire.volumes import volume_to_bytes
from tests.server.conftest import SOCKET, in_process, toy_app

CENTRE = {"type": "point", "frame": "RAS", "at": [30.0, 30.0, 30.0], "positive": True}


def call(client, headers, **body):
    return client.post("/api/v1/session/call", json=body, headers=headers)


def test_a_click_gives_the_mask_of_the_ball(client, opened, phantom):
    key = call(client, opened, type="object.add", name="ball").json()["result"]["object"]
    reply = call(client, opened, type="prompt.add", object=key, prompts=[CENTRE], seq=5).json()
    (mask,) = reply["masks"]
    shape = [high - low for low, high in mask["box"]]
    inside = decode_runs(base64.b64decode(mask["payload"]), shape)
    whole = np.zeros(phantom.shape, np.uint8)
    whole[tuple(slice(*edge) for edge in mask["box"])] = inside
    assert whole[30, 30, 30] == 1
    assert 0.8 < whole.sum() / (4 / 3 * np.pi * 9.3**3) < 1.2
    assert reply["seq"] == mask["seq"] == 5
    assert reply["result"] == {"prompts": [1]}
    assert reply["objects"][0]["volume_ml"] == pytest.approx(whole.sum() / 1000)


def test_the_socket_sends_progress_then_masks_then_the_end(client, opened):
    with client.websocket_connect(SOCKET) as socket:
        socket.send_json({"type": "hello", "lease": opened["X-Lease-Token"]})
        assert socket.receive_json() == {"type": "ready"}
        socket.send_json({"type": "object.add", "seq": 1})
        assert socket.receive_json()["result"] == {"object": 1}
        socket.send_json({"type": "prompt.add", "seq": 2, "object": 1, "prompts": [CENTRE]})
        kinds, masks = [], []
        while "done" not in kinds:
            message = socket.receive()
            if message.get("bytes"):
                header, payload = unpack_frame(message["bytes"])
                masks.append((header, payload))
                kinds.append("mask")
            else:
                kinds.append(json.loads(message["text"])["type"])
        assert kinds == ["progress", "progress", "mask", "done"]
        assert masks[0][0]["seq"] == 2


def wait_for_done(socket, seq):
    """Messages up to the end of a request: its types and its closing message."""
    kinds = []
    while True:
        message = socket.receive()
        if message.get("bytes"):
            header, _ = unpack_frame(message["bytes"])
            kinds.append(("mask", header["seq"]))
            continue
        told = json.loads(message["text"])
        kinds.append((told["type"], told["seq"]))
        if told["seq"] == seq and told["type"] in {"done", "error"}:
            return kinds, told


def greeted(socket, headers):
    socket.send_json({"type": "hello", "lease": headers["X-Lease-Token"]})
    assert socket.receive_json() == {"type": "ready"}


@pytest.fixture
def held(client):
    """Keep the engine busy until the event is set."""
    opened, begun = threading.Event(), threading.Event()

    def hold():
        begun.set()
        opened.wait(5)

    def start():
        client.app.state.queue.submit("someone else", hold)
        assert begun.wait(5)
        return opened

    yield start
    opened.set()


def point(*at, positive=True):
    return {"type": "point", "frame": "voxel", "at": list(at), "positive": positive}


def test_a_newer_click_takes_the_place_of_one_that_waits_and_nothing_is_lost(client, opened, held):
    clicks = [point(30, 30, 30), point(33, 30, 30), point(30, 45, 30, positive=False)]
    for name in ("at once", "one by one"):
        call(client, opened, type="object.add", name=name)
    call(client, opened, type="overlap.set", overlap="allow")
    for click in clicks:
        alone = call(client, opened, type="prompt.add", object=2, prompts=[click]).json()
    with client.websocket_connect(SOCKET) as socket:
        greeted(socket, opened)
        engine = held()
        for seq, click in enumerate(clicks):
            socket.send_json({"type": "prompt.add", "seq": seq, "object": 1, "prompts": [click]})
        for seq in (0, 1):
            told = socket.receive_json()
            assert (told["seq"], told["error"]["code"]) == (seq, "superseded")
        engine.set()
        kinds, done = wait_for_done(socket, 2)
    assert ("mask", 2) in kinds
    assert [o["num_prompts"] for o in done["objects"]] == [3, 3]
    masks = call(client, opened, type="masks.get").json()["masks"]
    assert masks[0]["payload"] == masks[1]["payload"] == alone["masks"][0]["payload"]
    undone = call(client, opened, type="prompt.undo", object=1).json()
    assert undone["objects"][0]["num_prompts"] == 2


def test_a_request_that_waits_can_be_taken_back(client, opened, held):
    call(client, opened, type="object.add")
    with client.websocket_connect(SOCKET) as socket:
        greeted(socket, opened)
        engine = held()
        socket.send_json(
            {"type": "prompt.add", "seq": 1, "object": 1, "prompts": [point(30, 30, 30)]}
        )
        socket.send_json({"type": "cancel", "seq": 1})
        told = {}
        for _ in range(2):
            reply = socket.receive_json()
            told[reply["type"]] = reply
        assert told["done"]["result"] == {"cancelled": True}
        assert told["error"]["error"]["code"] == "cancelled"
        engine.set()
        socket.send_json({"type": "study.get", "seq": 2})
        _, done = wait_for_done(socket, 2)
    assert done["result"]["objects"][0]["prompts"] == []


def test_undo_and_other_objects_send_every_mask_that_changed(client, opened):
    for _ in range(2):
        call(client, opened, type="object.add")
    call(client, opened, type="prompt.add", object=1, prompts=[CENTRE])
    covered = call(client, opened, type="prompt.add", object=2, prompts=[CENTRE]).json()
    assert sorted(mask["object"] for mask in covered["masks"]) == [1, 2]
    assert covered["objects"][0]["volume_ml"] == 0
    undone = call(client, opened, type="undo").json()
    assert {mask["object"]: bool(mask["payload"]) for mask in undone["masks"]} == {
        1: True,
        2: False,
    }
    versions = [mask["version"] for mask in covered["masks"] + undone["masks"]]
    assert len(set(versions)) == 4
    assert undone["can_redo"]


def test_everything_else_that_can_be_done_to_objects(client, opened):
    def ok(**body):
        reply = call(client, opened, **body)
        assert reply.status_code == 200, reply.text
        return reply.json()

    ok(type="object.add", name="liver", colour=[1, 2, 3])
    ok(type="object.add")
    ok(type="prompt.add", object=1, prompts=[CENTRE, point(30, 31, 30)])
    ok(type="prompt.edit", object=1, id=2, prompt=point(31, 30, 30))
    assert len(ok(type="prompt.remove", object=1, ids=[2])["masks"]) == 1
    ok(type="prompt.undo", object=1)
    ok(type="prompt.redo", object=1)
    found = ok(type="statistics", object=1)["result"]
    assert found["volume_ml"] > 1
    assert found["longest"]["mm"] == pytest.approx(18.6, abs=2)
    ok(
        type="steps.set",
        object=1,
        steps=[{"kind": "fill_holes"}, {"kind": "smooth", "radius_mm": 1}],
    )
    ok(type="object.describe", object=1, name="new", colour=[9, 9, 9])
    ok(type="object.lock", object=1)
    ok(type="object.unlock", object=1)
    ok(type="object.move", object=2, position=0)
    ok(type="prompt.set", object=2, prompts=[point(30, 30, 30)])
    ok(type="overlap.set", overlap="first_wins")
    merged = ok(type="object.merge", object=1, others=[2])
    assert [item["name"] for item in merged["objects"]] == ["new"]
    study = client.get("/api/v1/session/study", headers=opened).json()
    assert study["objects"][0]["prompts"][0]["type"] == "mask"
    assert "runs" not in study["objects"][0]["prompts"][0]
    ok(type="object.delete", object=1)
    assert ok(type="undo")["objects"][0]["colour"] == [9, 9, 9]


def test_a_candidate_can_be_chosen(client, opened):
    call(client, opened, type="object.add")
    call(client, opened, type="prompt.add", object=1, prompts=[CENTRE])
    found = call(client, opened, type="candidates", object=1).json()["result"]["candidates"]
    assert found[0].keys() >= {"index", "kind", "quality", "volume_ml", "box", "payload"}
    chosen = call(client, opened, type="candidate.choose", object=1, index=0).json()
    assert chosen["masks"][0]["payload"] == found[0]["payload"]
    wrong = call(client, opened, type="candidate.choose", object=1, index=9)
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (422, "bad_prompt")


def test_a_suggestion_can_be_accepted(client, opened):
    asked = {"type": "suggest", "spacing_mm": 1.0, "max_suggestions": 3}
    result = call(client, opened, **asked).json()["result"]
    assert result["is_complete"]
    first = result["suggestions"][0]
    assert first["point"]["type"] == "point"
    reply = call(client, opened, type="suggestion.accept", index=0, name="found").json()
    assert reply["result"] == {"object": 1}
    assert reply["objects"][0]["name"] == "found"
    assert reply["masks"][0]["payload"] == first["payload"]
    # What is there is not suggested again.
    assert not call(client, opened, **asked).json()["result"]["suggestions"]
    wrong = call(client, opened, type="suggestion.accept", index=0)
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (422, "bad_prompt")


def test_suggestions_are_given_up_when_their_time_is_over(client, opened, monkeypatch):
    model = client.app.state.host.predictor.model
    encode = model.encode_image

    def slow(image):
        time.sleep(0.11)
        return encode(image)

    monkeypatch.setattr(model, "encode_image", slow)
    result = call(client, opened, type="suggest", seconds=0.1, spacing_mm=1.0).json()["result"]
    assert not result["is_complete"]


def test_how_sure_an_answer_is(client, opened):
    call(client, opened, type="object.add")
    missing = call(client, opened, type="uncertainty", object=1)
    assert (missing.status_code, missing.json()["error"]["code"]) == (409, "bad_state")
    call(client, opened, type="prompt.add", object=1, prompts=[CENTRE])
    result = call(client, opened, type="uncertainty", object=1, samples=3).json()["result"]
    (i, _), (j, _), (k, _) = result["box"]
    shape = [high - low for low, high in result["box"]]
    levels = np.frombuffer(base64.b64decode(result["payload"]), np.uint8).reshape(shape)
    assert levels[30 - i, 30 - j, 30 - k] > 128
    assert 0 < result["stability"] <= 1


def test_files_come_back_on_the_volumes_own_grid(client, opened, phantom, tmp_path):
    call(client, opened, type="object.add", name="ball")
    call(client, opened, type="prompt.add", object=1, prompts=[CENTRE])
    for query, name in [
        ("export?format=nii.gz", "a.nii.gz"),
        ("export?format=seg.nrrd", "a.seg.nrrd"),
        ("export?format=mha", "a.mha"),
        ("objects/1/mask.nii.gz", "b.nii.gz"),
    ]:
        reply = client.get(f"/api/v1/session/{query}", headers=opened)
        (tmp_path / name).write_bytes(reply.content)
        mask = read_mask(tmp_path / name)
        assert mask.geometry.is_close(phantom.geometry)
        assert mask.array[30, 30, 30] == 1
    (tmp_path / "volume.nii").write_bytes(
        client.get("/api/v1/session/volume.nii", headers=opened).content
    )
    np.testing.assert_array_equal(read_volume(tmp_path / "volume.nii").array, phantom.array)


def test_a_volume_is_described(client, lease, phantom_nii, phantom):
    told = client.put("/api/v1/session/volume?name=x", content=phantom_nii, headers=lease).json()
    assert told["shape"] == [60, 60, 60]
    assert told["affine"] == phantom.geometry.affine.tolist()
    assert told["intensity"]["max"] == pytest.approx(float(phantom.array.max()))
    assert told["intensity"]["min"] <= told["intensity"]["p1"] <= told["intensity"]["p99"]


def test_a_time_point_of_a_series_is_chosen(client, lease):
    frames = np.zeros((8, 8, 8, 3), np.float32)
    frames[..., 2] = 5
    header = bytearray(volume_to_bytes(Volume(frames[..., 0], Geometry((8, 8, 8), np.eye(4)))))[
        :544
    ]
    header[16:32] = np.array([4, 8], "<i8").tobytes()
    header[48:56] = np.array([3], "<i8").tobytes()
    content = bytes(header) + frames.tobytes(order="F")
    told = client.put("/api/v1/session/volume?time=2", content=content, headers=lease).json()
    assert told["intensity"]["max"] == 5


def test_metrics_count_sessions_answers_and_refusals(client, opened):
    call(client, opened, type="object.add")
    call(client, opened, type="prompt.add", object=1, prompts=[CENTRE])
    call(client, opened, type="object.lock", object=7)
    text = client.get("/metrics").text
    assert "fastsam3d_sessions 1.0" in text
    assert "fastsam3d_click_seconds_count 1.0" in text
    assert "fastsam3d_encode_seconds_count 1.0" in text
    assert "fastsam3d_overhead_seconds_count 1.0" in text
    assert 'fastsam3d_refusals_total{code="bad_state"} 1.0' in text


def test_a_silent_socket_keeps_its_session_and_a_silent_client_does_not():
    with in_process(toy_app(liveness_s=0.3)) as client:
        table = client.app.state.leases
        now = [1000.0]
        table._clock = lambda: now[0]
        silent, listening = (
            {"X-Lease-Token": client.post("/api/v1/sessions").json()["lease"]} for _ in range(2)
        )
        with client.websocket_connect(SOCKET) as socket:
            greeted(socket, listening)
            lease = table.find(listening["X-Lease-Token"])
            for _ in range(3):
                now[0] += 0.2
                until(lambda: lease.seen == now[0])
            assert call(client, silent, type="undo").status_code == 410
            socket.send_json({"type": "undo", "seq": 4})
            assert socket.receive_json()["error"]["code"] == "no_volume"


def until(condition):
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_embeddings_of_all_sessions_stay_within_their_bound(phantom_nii):
    with in_process(toy_app(total_cache_bytes=400_000)) as client:
        tenants = [
            {"X-Lease-Token": client.post("/api/v1/sessions").json()["lease"]} for _ in range(4)
        ]
        for headers in tenants:
            client.put("/api/v1/session/volume", content=phantom_nii, headers=headers)
            call(client, headers, type="object.add")
            call(client, headers, type="prompt.add", object=1, prompts=[CENTRE])
        rooms = client.app.state.leases.rooms
        assert 0 < sum(room.embedding_bytes for room in rooms) <= 400_000
        assert rooms[0].embedding_bytes == 0


def test_volumes_of_all_sessions_stay_within_their_bound(phantom_nii):
    with in_process(toy_app(max_open_voxels=60**3 + 1)) as client:
        one, two = (
            {"X-Lease-Token": client.post("/api/v1/sessions").json()["lease"]} for _ in range(2)
        )
        for _ in range(2):
            reply = client.put("/api/v1/session/volume", content=phantom_nii, headers=one)
            assert reply.status_code == 200
        reply = client.put("/api/v1/session/volume", content=phantom_nii, headers=two)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "volumes_full")
        client.delete("/api/v1/session", headers=one)
        reply = client.put("/api/v1/session/volume", content=phantom_nii, headers=two)
        assert reply.status_code == 200


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (MemoryError(), 503, "out_of_memory"),
        (RuntimeError("kernel at /usr/lib"), 500, "internal"),
        (KeyboardInterrupt(), 500, "internal"),
        (CheckpointError("not finite"), 503, "model_failed"),
    ],
)
def test_a_failing_engine_is_told_to_its_client_alone(
    client, opened, monkeypatch, error, status, code
):
    call(client, opened, type="object.add")
    model = client.app.state.host.predictor.model

    def fail(_):
        raise error

    monkeypatch.setattr(model, "encode_image", fail)
    told = call(client, opened, type="prompt.add", object=1, prompts=[CENTRE])
    assert (told.status_code, told.json()["error"]["code"]) == (status, code)
    assert "/usr" not in told.text
    monkeypatch.undo()
    again = call(client, opened, type="prompt.add", object=1, prompts=[CENTRE])
    assert again.status_code == 200
    assert client.get("/healthz").status_code == 200


def test_a_client_that_does_not_read_is_not_served_on(live, phantom_nii):
    root = f"{live.url}/api/v1"
    headers = {"X-Lease-Token": urllib3.request("POST", f"{root}/sessions").json()["lease"]}
    urllib3.request("PUT", f"{root}/session/volume", body=phantom_nii, headers=headers)
    urllib3.request("POST", f"{root}/session/call", json={"type": "object.add"}, headers=headers)
    lengths = []
    original = native_ws.Connection._put

    def counting(self, messages, **options):
        original(self, messages, **options)
        lengths.append(self._outbox.qsize())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_ws.Connection, "_put", counting)
        with websockets.sync.client.connect(
            f"ws://127.0.0.1:{live.port}/api/v1/session/ws", max_queue=1
        ) as socket:
            socket.send(json.dumps({"type": "hello", "lease": headers["X-Lease-Token"]}))
            for seq in range(400):
                socket.send(json.dumps({"type": "study.get", "seq": seq}))
            told = [json.loads(socket.recv(5)) for _ in range(401)]
    assert sorted(message.get("seq") for message in told[1:]) == list(range(400))
    assert max(lengths) <= native_ws.MAX_PENDING
    urllib3.request("DELETE", f"{root}/session", headers=headers)
