"""Whatever is sent by the protocols of others, no request makes the server fail.

OpenAPI describes our own API and the forms of MONAI Label, see test_openapi. It cannot describe
arrays and metadata of nnInteractive, nor the parameters within MONAI Label's forms: see here.
"""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fastsam3d.server.nninteractive_arrays import DTYPES, pack_array
from fastsam3d.wire.volumes import volume_to_bytes
from tests.server.conftest import in_process, toy_app
from tests.session.phantoms import ball_volume

SHAPE = (12, 12, 12)
FEW = settings(
    max_examples=150,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
PLAIN = ("/set_target_buffer", "/set_do_autozoom", "/add_point_interaction",
         "/add_bbox_interaction", "/predict", "/undo", "/reset_interactions")  # fmt: skip
PACKED = ("/add_scribble_interaction", "/add_lasso_interaction",
          "/add_initial_seg_interaction")  # fmt: skip

numbers = st.one_of(
    st.integers(-2, 13),
    st.sampled_from([2**31, 2**63, 2**80, -(2**40), 1e308, -0.5, 0.1]),
    st.floats(allow_nan=False, allow_infinity=False),
)
words = st.sampled_from(["uint8", "bool", "float32", "object", "", "CON", "../x", "a\u202eb", "1"])
leaves = st.one_of(numbers, st.booleans(), st.none(), words, st.text(max_size=5))
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4), max_leaves=8)
triples = st.lists(st.integers(0, 11), min_size=3, max_size=3)
spans = st.lists(st.tuples(st.integers(0, 5), st.integers(6, 12)), min_size=3, max_size=3)


@st.composite
def mostly(draw, **known):
    """An object of known fields, of which up to two are missing or anything."""
    found = {name: draw(strategy) for name, strategy in known.items()}
    for name in draw(st.lists(st.sampled_from(sorted(known)), max_size=2)):
        if draw(st.booleans()):
            found.pop(name, None)
        else:
            found[name] = draw(values)
    return found


metas = mostly(
    coordinates=triples,
    bbox_coords=spans,
    include_interaction=st.booleans(),
    run_prediction=st.booleans(),
    shape=st.just(list(SHAPE)),
    dtype=st.sampled_from(["uint8", "bool"]),
    do_autozoom=st.booleans(),
    image_properties=mostly(spacing=st.lists(st.floats(0.5, 3), min_size=3, max_size=3)),
    interaction_bbox=st.none() | spans,
)
shapes = st.one_of(st.just(SHAPE), st.just(SHAPE), st.just((1, *SHAPE)),
                   st.lists(st.integers(0, 13), max_size=5).map(tuple))  # fmt: skip


@st.composite
def packed(draw):
    """An array as its client sends it, mostly with some bytes changed, doubled or left out."""
    array = np.zeros(draw(shapes), draw(st.sampled_from(DTYPES)))
    array.flat[: draw(st.integers(0, 40))] = draw(st.sampled_from([1, 2, 127]))
    try:
        message = bytearray(pack_array(array))
    except ValueError:  # More axes than the format has.
        message = bytearray(b"NNIA")
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        at = draw(st.integers(0, len(message)))
        message[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=8))
    return bytes(message)


@pytest.fixture(scope="module")
def client():
    with in_process(toy_app(max_sessions=8)) as found:
        yield found


def check(reply):
    assert reply.status_code < 500, reply.text
    if reply.status_code >= 400:
        assert reply.json()["error"].keys() == {"code", "message"}


@pytest.fixture
def claimed(client):
    headers = {"X-Lease-Token": client.post("/claim").json()["lease_token"]}
    image = np.zeros((1, *SHAPE), np.float32)
    image[0, 4:8, 4:8, 4:8] = 1000
    client.post("/set_image", content=pack_array(image), headers=headers).raise_for_status()
    buffer = {"shape": SHAPE, "dtype": "uint8"}
    client.post("/set_target_buffer", json=buffer, headers=headers).raise_for_status()
    yield headers
    client.post("/release", headers=headers)


def test_any_metadata_of_nninteractive(client, claimed):
    @FEW
    @given(st.sampled_from(PLAIN), metas)
    def ask(path, meta):
        check(client.post(path, content=json.dumps(meta), headers=claimed))

    ask()


def test_any_array_of_nninteractive(client, claimed):
    @FEW
    @given(st.sampled_from(PACKED), metas, packed())
    def ask(path, meta, body):
        headers = claimed | {"X-Meta": json.dumps(meta)}
        check(client.post(path, content=body, headers=headers))

    ask()


def test_any_image_of_nninteractive(client, claimed):
    @FEW
    @given(metas, packed())
    def ask(meta, body):
        headers = claimed | {"X-Meta": json.dumps(meta)}
        check(client.post("/set_image", content=body, headers=headers))

    ask()


def test_any_parameters_of_monai_label(client):
    volume = ball_volume(shape=SHAPE, centre_mm=(6, 6, 6), radius_mm=3)
    files = {"files": ("scan.nii", volume_to_bytes(volume))}
    session_id = client.put("/session/", files=files).json()["session_id"]
    points = st.lists(triples, max_size=3)
    params = mostly(
        foreground=points,
        background=points,
        label=st.sampled_from(["", "spleen"]),
        result_extension=st.sampled_from([".nrrd", ".nii.gz", ".exe", "/../x"]),
        result_dtype=st.sampled_from(["uint8", "uint16", "object"]),
        result_compress=st.booleans(),
        restore_label_idx=st.booleans(),
        spleen=points,
        label_names=st.just({"spleen": 1}),
    )

    @FEW
    @given(st.sampled_from(["fastsam3d", "fastsam3d_labels", "x"]), params)
    def ask(model, given_params):
        query = {"session_id": session_id, "output": "image"}
        form = {"params": json.dumps(given_params)}
        check(client.post(f"/infer/{model}", params=query, data=form))

    ask()
