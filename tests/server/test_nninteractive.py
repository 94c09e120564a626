"""The nnInteractive protocol against requests that its client never sends."""

import json

import numpy as np
import pytest

from fastsam3d.server.nninteractive_arrays import pack_array
from tests.server.conftest import in_process, toy_app

SHAPE = (12, 14, 16)
META = "X-Meta"


def image():
    array = np.zeros((1, *SHAPE), np.float32)
    array[0, 4:9, 4:10, 5:12] = 1000
    return array


def send(client, headers, path, array, **meta):
    body = array if isinstance(array, bytes) else pack_array(array)
    return client.post(path, content=body, headers=headers | {META: json.dumps(meta)})


@pytest.fixture
def claimed(client):
    return {"X-Lease-Token": client.post("/claim").json()["lease_token"]}


@pytest.fixture
def begun(client, claimed):
    spacing = {"spacing": [1.0, 1.0, 1.0]}
    send(client, claimed, "/set_image", image(), image_properties=spacing).raise_for_status()
    buffer = {"shape": list(SHAPE), "dtype": "uint8"}
    client.post("/set_target_buffer", json=buffer, headers=claimed).raise_for_status()
    return claimed


def point(*at, **more):
    return {"coordinates": list(at), "include_interaction": True, **more}


def box(*edges, positive=True):
    return {"bbox_coords": list(edges), "include_interaction": positive}


POINT, BOX = "/add_point_interaction", "/add_bbox_interaction"
REFUSED = {
    "beyond the volume": (POINT, point(12, 1, 1), 422),
    "before the volume": (POINT, point(-1, 1, 1), 422),
    "far away": (POINT, point(1e308, 1, 1), 422),
    "two numbers": (POINT, point(1, 1), 422),
    "text": (POINT, point("1", 1, 1), 422),
    "truth": (POINT, point(True, 1, 1), 422),
    "no list": (POINT, {"coordinates": 5, "include_interaction": True}, 400),
    "no sign": (POINT, {"coordinates": [1, 1, 1]}, 400),
    "sign as text": (POINT, {"coordinates": [1, 1, 1], "include_interaction": "yes"}, 400),
    "run as number": (POINT, point(1, 1, 1, run_prediction=1), 400),
    "no coordinates": (POINT, {}, 400),
    "flat box": (BOX, box([1, 1], [2, 5], [2, 5]), 400),
    "box beyond": (BOX, box([20, 30], [2, 5], [2, 5]), 422),
    "negative box beyond": (BOX, box([20, 30], [2, 5], [2, 5], positive=False), 422),
    "box with halves": (BOX, box([1.5, 3], [2, 5], [2, 5]), 400),
    "box of 2^80": (BOX, box([0, 2**80], [2, 5], [2, 5]), 400),
    "box of two pairs": (BOX, box([1, 3], [2, 5]), 400),
    "box of triples": (BOX, box([1, 3, 4], [2, 5, 6], [2, 5, 6]), 400),
    "buffer of another shape": (
        "/set_target_buffer",
        {"shape": [12, 14, 15], "dtype": "bool"},
        400,
    ),
    "buffer of 10^18": ("/set_target_buffer", {"shape": [10**6] * 3, "dtype": "uint8"}, 413),
    "buffer of -1": ("/set_target_buffer", {"shape": [-1, 1, 1], "dtype": "uint8"}, 400),
    "buffer of objects": ("/set_target_buffer", {"shape": list(SHAPE), "dtype": "object"}, 400),
    "buffer of floats": ("/set_target_buffer", {"shape": list(SHAPE), "dtype": "float32"}, 400),
    "zoom as text": ("/set_do_autozoom", {"do_autozoom": "no"}, 400),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_bad_values_are_refused_and_change_nothing(client, begun, kind):
    path, body, status = REFUSED[kind]
    reply = client.post(path, json=body, headers=begun)
    assert reply.status_code == status
    assert reply.json()["detail"] == reply.json()["error"]["message"]
    clicked = client.post(POINT, json=point(6, 6, 8), headers=begun)
    assert json.loads(clicked.headers[META])["ran_prediction"] is True


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "3",
        '{"coordinates": [NaN, 1, 1]}',
        '{"coordinates": [Infinity, 1, 1]}',
        "[" * 10_000,
        "\x00",
        '"' + "x" * 16_000 + '"',
    ],
)
def test_what_is_not_an_object_in_json_is_refused(client, begun, text):
    reply = client.post(POINT, content=text, headers=begun)
    assert reply.status_code == 400
    scribble = client.post(
        "/add_scribble_interaction",
        content=pack_array(np.zeros(SHAPE, np.uint8)),
        headers=begun | {META: text.replace("\x00", "{")},
    )
    assert scribble.status_code == 400


def test_long_json_is_refused(client, begun):
    reply = client.post(POINT, content=b" " * 70_000, headers=begun)
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_large")
    long = begun | {META: json.dumps({"image_properties": "x" * 70_000})}
    assert client.post("/set_image", content=b"x", headers=long).status_code == 400


@pytest.mark.parametrize(
    ("array", "status"),
    [
        (b"", 400),
        (b"no array", 400),
        (np.zeros(SHAPE, np.float32), 422),  # Without channels.
        (np.zeros((17, 2, 2, 2), np.float32), 422),
        (np.full((1, *SHAPE), np.nan, np.float32), 422),
        (np.full((1, *SHAPE), 1e300), 422),
    ],
    ids=["empty", "text", "3-D", "17 channels", "NaN", "infinite"],
)
def test_images_that_are_none_are_refused(client, claimed, array, status):
    reply = send(client, claimed, "/set_image", array)
    assert reply.status_code == status
    assert "Traceback" not in reply.text


@pytest.mark.parametrize(
    "spacing", [[0, 1, 1], [-1, 1, 1], [1, 1], ["1", 1, 1], [True, 1, 1], [1e300, 1, 1], 3]
)
def test_bad_spacings_are_refused(client, claimed, spacing):
    reply = send(client, claimed, "/set_image", image(), image_properties={"spacing": spacing})
    assert reply.status_code == 400


def test_an_image_beyond_the_limits_is_refused_by_what_it_announces():
    with in_process(toy_app(max_voxels=1000)) as client:
        headers = {"X-Lease-Token": client.post("/claim").json()["lease_token"]}
        reply = send(client, headers, "/set_image", image())
        assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_large")


@pytest.mark.parametrize("path", ["/add_scribble_interaction", "/add_lasso_interaction"])
def test_masks_that_do_not_fit_are_refused(client, begun, path):
    def status(array, **meta):
        return send(client, begun, path, array, include_interaction=True, **meta).status_code

    assert status(np.zeros((12, 14, 15), np.uint8)) == 422
    assert status(np.ones((2, 2, 2), np.uint8), interaction_bbox=[[11, 13], [0, 2], [0, 2]]) == 422
    assert status(np.ones((2, 2, 2), np.uint8), interaction_bbox=[[1, 1], [0, 2], [0, 2]]) == 400
    assert status(np.full(SHAPE, np.nan, np.float32)) == 400
    assert status(b"NNIA") == 400
    assert status(np.zeros(SHAPE, np.complex64).real.astype(np.float16)) == 200


def test_a_lasso_over_several_slices_is_refused(client, begun):
    mask = np.zeros(SHAPE, np.uint8)
    mask[3:5, 3:6, 3:6] = 1
    reply = send(client, begun, "/add_lasso_interaction", mask, include_interaction=True)
    assert reply.status_code == 422
    assert "one slice" in reply.json()["detail"]


@pytest.mark.parametrize("path", ["/add_scribble_interaction", "/add_lasso_interaction"])
def test_nothing_painted_does_nothing(client, begun, path):
    reply = send(client, begun, path, np.zeros(SHAPE, np.uint8), include_interaction=True)
    assert json.loads(reply.headers[META]) == {"ran_prediction": False, "bbox": None}
    assert reply.content == b""


def test_a_scribble_over_the_whole_volume_has_an_answer(client, begun):
    mask = np.full(SHAPE, 255, np.uint8)
    reply = send(client, begun, "/add_scribble_interaction", mask, include_interaction=True)
    assert json.loads(reply.headers[META])["bbox"] == [[0, side] for side in SHAPE]


def test_reversed_boxes_are_sorted(client, begun):
    boxes = (box([9, 4], [10, 4], [12, 5]), box([4, 9], [4, 10], [5, 12]))
    replies = []
    for body in boxes:
        replies.append(client.post(BOX, json=body, headers=begun).content)
        client.post("/undo", json={}, headers=begun)
    assert replies[0] == replies[1] != b""


def test_calls_out_of_order_are_told_so(client, claimed):
    buffer = {"shape": list(SHAPE), "dtype": "uint8"}
    reply = client.post(POINT, json=point(1, 1, 1), headers=claimed)
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "no_volume")
    assert client.post("/undo", json={}, headers=claimed).status_code == 409
    assert client.post("/reset_interactions", json={}, headers=claimed).status_code == 409
    assert client.post("/set_target_buffer", json=buffer, headers=claimed).status_code == 200
    send(client, claimed, "/set_image", image()).raise_for_status()
    reply = client.post(POINT, json=point(1, 1, 1), headers=claimed)
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "no_buffer")


@pytest.mark.parametrize("token", [None, "", "guessed", "x" * 5000, "ü".encode()])
def test_unknown_tokens_are_gone(client, begun, token):
    headers = {} if token is None else {"X-Lease-Token": token}
    for path in (POINT, "/set_image", "/undo", "/heartbeat", "/set_target_buffer"):
        reply = client.post(path, json=point(1, 1, 1), headers=headers)
        assert reply.status_code == 410
        assert reply.json()["detail"]
    assert client.get("/lease_status", headers=headers).status_code == 410
    assert client.post("/release", headers=headers).json() == {"released": True}
    assert client.post(POINT, json=point(6, 6, 8), headers=begun).status_code == 200


def test_a_released_session_is_gone(client, begun):
    for _ in range(2):
        assert client.post("/release", headers=begun).json() == {"released": True}
    assert client.post(POINT, json=point(6, 6, 8), headers=begun).status_code == 410


def test_a_full_server_says_when_to_come_back(client):
    for _ in range(4):
        client.post("/claim").raise_for_status()
    reply = client.post("/claim")
    assert (reply.status_code, reply.headers["Retry-After"]) == (503, "10")


def test_looking_at_a_lease_touches_no_clock(client, claimed):
    lease = client.app.state.leases.find(claimed["X-Lease-Token"])
    before = (lease.worked, lease.seen)
    client.get("/lease_status", headers=claimed)
    assert (lease.worked, lease.seen) == before
    client.post("/heartbeat", json={}, headers=claimed)
    assert lease.worked == before[0]
    assert lease.seen > before[1]


def test_prompts_are_bounded(client, begun, monkeypatch):
    monkeypatch.setattr("fastsam3d.server.nninteractive_desk.MAX_PROMPTS", 2)
    codes = [client.post(POINT, json=point(6, 6, n), headers=begun).status_code for n in (6, 7, 8)]
    assert codes == [200, 200, 422]


def test_a_client_that_missed_an_answer_is_sent_all_it_may_lack(client, begun):
    client.post(POINT, json=point(6, 6, 8), headers=begun)
    room = client.app.state.leases.rooms[0]
    room.extra["nninteractive"].is_certain = False
    client.post("/reset_interactions", json={}, headers=begun)
    client.post(POINT, json=point(6, 6, 8), headers=begun)
    room.extra["nninteractive"].is_certain = False
    mask = np.zeros(SHAPE, np.uint8)
    mask[0, 0, 0] = 1
    reply = send(client, begun, "/add_scribble_interaction", mask, include_interaction=True)
    (i, j, k) = json.loads(reply.headers[META])["bbox"]
    assert i[0] == j[0] == k[0] == 0
    assert i[1] >= 9
    assert j[1] >= 10
    assert k[1] >= 12


def test_native_requests_see_the_object_of_the_session(client, begun):
    client.post(POINT, json=point(6, 6, 8), headers=begun)
    study = client.get("/api/v1/session/study", headers=begun).json()
    assert [item["name"] for item in study["objects"]] == ["nnInteractive"]
    assert client.get("/api/v1/session/export?format=nii.gz", headers=begun).status_code == 200
