"""The engine may crash, hang or be killed: one request is told, and nothing is lost."""

import gc
import os
import signal

import numpy as np
import pytest
import torch

from fastsam3d.client import RemoteSession
from fastsam3d.errors import (
    CheckpointError,
    ConfigError,
    EngineCrashedError,
    ServerBusyError,
    WireError,
)
from fastsam3d.server import arena
from fastsam3d.server.app import create_app
from fastsam3d.server.engine_process import EngineProcess
from fastsam3d.server.settings import ServerSettings
from fastsam3d.session import Predictor, Session
from tests.server.conftest import in_process, run_live
from tests.server.toy_engine import isolated_host, toy_engine
from tests.session.phantoms import BrightModel, fake_predictor

CLICKS = [(30, 30, 30), (33, 30, 30), (30, 34, 28)]


@pytest.fixture(scope="module")
def orders(tmp_path_factory):
    """What the engine is to do instead of its next decoding."""
    return tmp_path_factory.mktemp("orders") / "order"


@pytest.fixture(scope="module")
def served(orders):
    """A server on loopback whose engine is a process of its own."""
    settings = ServerSettings(port=0, threads=1, predict_timeout_s=5.0)
    app = create_app(settings, isolated_host(settings, orders))
    yield from run_live(app)


@pytest.fixture(scope="module")
def engine(orders):
    found = toy_engine(orders, timeout_s=1.0)
    yield found
    found.close()


@pytest.fixture
def clients(served, phantom):
    """Two sessions with one click each."""
    with RemoteSession(served.url) as one, RemoteSession(served.url) as other:
        for session in (one, other):
            session.set_volume(phantom)
            session.add_point(CLICKS[0])
        yield one, other


def pid_of(served):
    return served.app.state.host._engine.pid


def local_masks(phantom):
    session = Session(fake_predictor())
    session.set_volume(phantom)
    return [session.add_point(click).mask.array for click in CLICKS]


def test_masks_are_those_of_a_model_in_this_process(clients, phantom):
    one, _ = clients
    expected = local_masks(phantom)
    for click, mask in zip(CLICKS[1:], expected[1:], strict=True):
        np.testing.assert_array_equal(one.add_point(click).mask.array, mask)


@pytest.mark.parametrize("order", ["SIGSEGV", "SIGKILL"])
def test_a_crash_is_told_to_one_and_loses_nothing(served, clients, orders, phantom, order):
    one, other = clients
    expected = local_masks(phantom)
    former = pid_of(served)
    orders.write_text(order)
    with pytest.raises(EngineCrashedError, match=order):
        one.add_point(CLICKS[1])
    assert len(one.prompts) == 1
    np.testing.assert_array_equal(other.add_point(CLICKS[1]).mask.array, expected[1])
    np.testing.assert_array_equal(one.add_point(CLICKS[1]).mask.array, expected[1])
    assert pid_of(served) != former


def test_an_engine_that_dies_between_two_clicks_is_not_noticed(served, clients, phantom):
    one, _ = clients
    child = served.app.state.host._engine._child
    os.kill(child.pid, signal.SIGKILL)
    child._process.wait()
    np.testing.assert_array_equal(one.add_point(CLICKS[1]).mask.array, local_masks(phantom)[1])


@pytest.mark.parametrize(("order", "error"), [("memory", ServerBusyError), ("bug", WireError)])
def test_an_error_in_the_engine_ends_nothing(served, clients, orders, order, error):
    one, _ = clients
    former = pid_of(served)
    orders.write_text(order)
    with pytest.raises(error):
        one.add_point(CLICKS[1])
    assert pid_of(served) == former
    assert one.add_point(CLICKS[1]).predicted_quality > 0


def test_over_http_it_is_503_with_a_time_to_try_again(orders, phantom_nii):
    settings = ServerSettings(threads=1)
    app = create_app(settings, isolated_host(settings, orders))
    with in_process(app) as client:
        headers = {"X-Lease-Token": client.post("/api/v1/sessions").json()["lease"]}
        client.put("/api/v1/session/volume", content=phantom_nii, headers=headers)

        def call(**fields):
            return client.post("/api/v1/session/call", json=fields, headers=headers)

        call(type="object.add")
        prompts = [{"type": "point", "frame": "voxel", "at": [30, 30, 30]}]
        orders.write_text("SIGSEGV")
        reply = call(type="prompt.add", object=1, prompts=prompts)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_crashed")
        assert int(reply.headers["Retry-After"]) > 0
        assert client.get("/healthz").status_code == 200
        assert call(type="prompt.add", object=1, prompts=prompts).status_code == 200
        assert "fastsam3d_engine_restarts 1.0" in client.get("/metrics").text
        child = app.state.host._engine._child
    assert not child.is_alive


def test_embeddings_stay_in_the_engine_while_someone_has_them(engine):
    image = torch.rand(1, 1, 32, 32, 32)
    embedding = engine.encode_image(image)
    assert embedding.tokens.device.type == "meta"
    assert (embedding.num_bytes, embedding.batch_size) == (4 * 32**3, 1)
    again = engine.encode_image(image)
    del embedding
    gc.collect()
    assert len(engine._freed()) == 1
    points, labels = torch.full((1, 1, 3), 16.0), torch.ones(1, 1, dtype=torch.int64)
    found = engine.decode_masks(again, points, labels)
    expected = BrightModel().decode_masks(BrightModel().encode_image(image), points, labels)
    for part, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(part, wanted, rtol=0, atol=0)


def test_answers_are_not_overwritten_by_the_next(engine):
    predictor = Predictor(engine)
    embedding = engine.encode_image(torch.rand(1, 1, 32, 32, 32))
    points, labels = torch.full((2, 1, 3), 16.0), torch.ones(2, 1, dtype=torch.int64)
    mask = torch.zeros(1, 1, 32, 32, 32)
    first, _ = engine.decode_masks(embedding.tile(2), points, labels, mask_logits=mask)
    kept = first.clone()
    engine.decode_masks(embedding, points[:1], 0 * labels[:1])
    torch.testing.assert_close(first, kept, rtol=0, atol=0)
    assert predictor.image_size == 32


def test_a_pass_has_its_time(engine, orders):
    embedding = engine.encode_image(torch.rand(1, 1, 32, 32, 32))
    points, labels = torch.full((1, 1, 3), 16.0), torch.ones(1, 1, dtype=torch.int64)
    orders.write_text("hang")
    with pytest.raises(EngineCrashedError, match=r"within 1 s"):
        engine.decode_masks(embedding, points, labels)
    with pytest.raises(EngineCrashedError, match="started anew"):
        engine.decode_masks(embedding, points, labels)


def test_an_engine_that_cannot_start_is_tried_again(tmp_path):
    weights, image = tmp_path / "weights", torch.zeros(1, 1, 32, 32, 32)
    weights.touch()
    engine = EngineProcess("tests.server.bad_children:light_engine", {"weights": str(weights)})
    weights.unlink()
    engine._child.kill()
    engine.tend()
    with pytest.raises(CheckpointError, match="weights are gone"):
        engine.encode_image(image)
    assert engine.is_down
    weights.touch()
    engine._child._process.wait()
    engine.tend()
    assert engine.is_down
    engine.tend()
    assert not engine.is_down
    assert engine.encode_image(image).image_size == 32
    engine.close()


def test_the_engine_has_a_process_where_that_costs_little(monkeypatch):
    assert ServerSettings().has_engine_process("cpu")
    assert not ServerSettings().has_engine_process("cuda")
    assert ServerSettings(engine_process=True).has_engine_process("cuda")
    assert not ServerSettings(engine_process=False).has_engine_process("cpu")
    monkeypatch.setattr(arena, "IS_SUPPORTED", False)
    assert not ServerSettings().has_engine_process("cpu")
    with pytest.raises(ConfigError, match="--no-engine-process"):
        ServerSettings(engine_process=True).has_engine_process("cpu")
