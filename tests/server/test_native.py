import base64
import json

import numpy as np
import pytest

from fastsam3d.wire.frames import unpack_frame
from fastsam3d.wire.masks import decode_runs
from tests.server.conftest import SOCKET

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
