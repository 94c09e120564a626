"""MONAI Label's protocol, request by request, and what it refuses."""

import gc
import json

import numpy as np
import pytest

from fastsam3d.io import read_volume, write_mask
from fastsam3d.prompts import Box, MaskPrompt, Point, PromptSet
from fastsam3d.server.monailabel_infer import EXTENSIONS, LABELS, MAX_POINTS
from fastsam3d.session import Session
from tests.server.conftest import in_process, toy_app
from tests.session.phantoms import ball_truth, fake_predictor

CENTRE = [30, 30, 30]


@pytest.fixture
def session_id(client, phantom_nii):
    """An upload of the phantom."""
    return upload(client, phantom_nii).json()["session_id"]


def upload(client, *files, **query):
    given = [("files", (f"{number}.nii", data)) for number, data in enumerate(files)]
    return client.put("/session/", files=given, params=query)


def infer(client, session_id, params, model="fastsam3d", output="image", **files):
    text = params if isinstance(params, str) else json.dumps(params)
    query = {"session_id": session_id, "output": output}
    given = {name: (name, data) for name, data in files.items()} or None
    return client.post(f"/infer/{model}", params=query, data={"params": text}, files=given)


def voxels(reply, tmp_path, suffix=".nrrd"):
    assert reply.status_code == 200, reply.text
    (tmp_path / f"reply{suffix}").write_bytes(reply.content)
    return read_volume(tmp_path / f"reply{suffix}")


def ours(volume, *prompts):
    session = Session(fake_predictor())
    session.set_volume(volume)
    return session.predict(PromptSet(prompts)).mask.array


def code(reply):
    return reply.status_code, reply.json()["error"]["code"]


def test_clients_find_interactive_models_and_names_of_objects(client):
    info = client.get("/info/").json()
    types = {name: model["type"] for name, model in info["models"].items()}
    assert types == {"fastsam3d": "deepgrow", "fastsam3d_labels": "deepedit"}
    assert info["labels"] == list(LABELS)
    assert "not a medical device" in info["description"]
    assert info["datastore"] == {"total": 0, "completed": 0, "label_tags": {}}


def test_nothing_is_trained_and_no_image_proposed(client):
    assert code(client.get("/train/?check_if_running=true")) == (404, "not_training")
    assert client.post("/activelearning/random", json={}).json() == {}


def test_a_mask_equals_that_of_our_own_api(client, session_id, phantom, tmp_path):
    params = {"foreground": [CENTRE, [33, 30, 30]], "background": [[45, 45, 45]]}
    found = voxels(infer(client, session_id, params), tmp_path)
    expected = ours(
        phantom,
        Point.voxel(CENTRE),
        Point.voxel((33, 30, 30)),
        Point.voxel((45, 45, 45), positive=False),
    )
    np.testing.assert_array_equal(found.array, expected)
    assert found.geometry == phantom.geometry
    assert 0.9 < np.mean(found.array[ball_truth(phantom.geometry)]) <= 1


def test_an_answer_does_not_depend_on_what_was_asked_before(client, session_id, tmp_path):
    first = voxels(infer(client, session_id, {"foreground": [CENTRE]}), tmp_path).array
    infer(client, session_id, {"foreground": [[10, 10, 10]], "background": [CENTRE]})
    again = voxels(infer(client, session_id, {"foreground": [CENTRE]}), tmp_path).array
    np.testing.assert_array_equal(first, again)


def test_a_second_click_on_an_image_does_not_encode_it_again(client, session_id):
    infer(client, session_id, {"foreground": [CENTRE]})
    reply = infer(client, session_id, {"foreground": [CENTRE, [31, 30, 30]]}, output="json")
    assert reply.json()["latencies"]["pre"] == 0


def test_a_region_of_interest_may_come_reversed(client, session_id, phantom, tmp_path):
    params = {"foreground": [CENTRE], "roi": [40, 20, 20, 40, 41, 19]}
    found = voxels(infer(client, session_id, params), tmp_path)
    box = Box.voxel((20, 20, 19), (41, 41, 42))
    np.testing.assert_array_equal(found.array, ours(phantom, box, Point.voxel(CENTRE)))


def test_a_mask_is_gone_on_from(client, session_id, phantom, tmp_path):
    start = phantom.new_mask(ball_truth(phantom.geometry, radius_mm=5))
    write_mask(start, tmp_path / "start.nrrd")
    data = (tmp_path / "start.nrrd").read_bytes()
    found = voxels(infer(client, session_id, {"foreground": [CENTRE]}, label=data), tmp_path)
    prompt = MaskPrompt(start.array, phantom.geometry)
    np.testing.assert_array_equal(found.array, ours(phantom, prompt, Point.voxel(CENTRE)))


def test_several_objects_have_the_values_that_info_says(client, session_id, tmp_path):
    params = {"liver": [CENTRE], "a find": [[10, 10, 10]], "background": []}
    reply = infer(client, session_id, params, model="fastsam3d_labels")
    values = client.get("/info/").json()["models"]["fastsam3d_labels"]["labels"]
    found = voxels(reply, tmp_path).array
    assert found[30, 30, 30] == values["liver"]
    assert found[10, 10, 10] == len(LABELS) + 1
    told = infer(client, session_id, params, model="fastsam3d_labels", output="json").json()
    assert told["label_names"] == {"liver": values["liver"], "a find": len(LABELS) + 1}


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_the_client_chooses_the_format(client, session_id, phantom, tmp_path, extension):
    params = {"foreground": [CENTRE], "result_extension": extension, "result_dtype": "int16"}
    found = voxels(infer(client, session_id, params), tmp_path, extension)
    assert found.array.dtype == np.int16
    assert found.geometry == phantom.geometry


def test_a_browser_gets_bare_voxels(client, session_id, phantom):
    params = {"foreground": [CENTRE], "result_compress": False}
    content = infer(client, session_id, params).content
    assert content.startswith(b"NRRD")
    flat = np.frombuffer(content[-phantom.array.size :], np.uint8)
    expected = ours(phantom, Point.voxel(CENTRE))
    np.testing.assert_array_equal(flat.reshape(phantom.shape, order="F"), expected)


def test_without_a_choice_the_reply_is_a_form_of_text_and_file(client, session_id):
    reply = infer(client, session_id, {"foreground": [CENTRE]}, output="all")
    assert reply.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert b'"label_names": {"structure": 1}' in reply.content
    assert b'name="image"; filename="mask-' in reply.content


def test_an_image_can_come_with_the_request(client, phantom, phantom_nii, tmp_path):
    found = voxels(infer(client, "", {"foreground": [CENTRE]}, file=phantom_nii), tmp_path)
    np.testing.assert_array_equal(found.array, ours(phantom, Point.voxel(CENTRE)))


def test_an_upload_is_known_until_it_is_removed(client, session_id):
    told = client.get(f"/session/{session_id}").json()
    assert told["session_id"] == session_id
    assert told["session_info"]["path"] == ""
    assert client.delete(f"/session/{session_id}").status_code == 200
    assert code(client.get(f"/session/{session_id}")) == (404, "session_not_found")
    assert code(client.delete(f"/session/{session_id}")) == (404, "session_not_found")
    assert code(infer(client, session_id, {"foreground": [CENTRE]})) == (404, "session_not_found")


def test_ids_are_long_secrets(client, phantom_nii):
    ids = {upload(client, phantom_nii).json()["session_id"] for _ in range(3)}
    assert len(ids) == 3
    assert min(map(len, ids)) >= 22  # 128 bits in base 64


def test_uploads_are_bounded_and_removal_makes_place(phantom_nii):
    with in_process(toy_app(max_sessions=2)) as client:
        first = upload(client, phantom_nii).json()["session_id"]
        upload(client, phantom_nii)
        refused = upload(client, phantom_nii)
        assert code(refused) == (503, "at_capacity")
        assert int(refused.headers["Retry-After"]) > 0
        client.delete(f"/session/{first}")
        assert upload(client, phantom_nii).status_code == 200


def test_uploads_count_in_the_memory_of_the_server(phantom_nii):
    with in_process(toy_app(max_open_voxels=60**3)) as client:
        assert upload(client, phantom_nii).status_code == 200
        assert code(upload(client, phantom_nii)) == (503, "volumes_full")
        assert code(upload(client)) == (400, "no_file")


def test_an_upload_lies_unused_for_as_long_as_its_client_said(client, phantom_nii):
    told = upload(client, phantom_nii, expiry=1).json()
    assert told["session_info"]["expiry"] == 1
    longer = upload(client, phantom_nii, expiry=10**9).json()
    assert longer["session_info"]["expiry"] == 600


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"foreground": [[60, 0, 0]]}, (422, "bad_prompt")),
        ({"foreground": [[-1, 0, 0]]}, (422, "bad_prompt")),
        ({"foreground": [[1e308, 0, 0]]}, (422, "bad_prompt")),
        ({"foreground": [[True, 0, 0]]}, (422, "bad_prompt")),
        ({"foreground": [["1", "2", "3"]]}, (422, "bad_prompt")),
        ({"foreground": [[1, 2]]}, (422, "bad_prompt")),
        ({"foreground": [7]}, (422, "bad_prompt")),
        ({"foreground": {"a": 1}}, (422, "bad_prompt")),
        ({"foreground": [CENTRE] * (MAX_POINTS + 1)}, (422, "too_many_points")),
        ({}, (422, "bad_prompt")),
        ({"foreground": [], "background": []}, (422, "bad_prompt")),
        ({"foreground": [CENTRE], "roi": [1, 2, 3]}, (422, "bad_prompt")),
        ({"foreground": [CENTRE], "roi": [0.5, 2, 3, 4, 5, 6]}, (422, "bad_prompt")),
        ({"foreground": [CENTRE], "roi": [70, 80, 70, 80, 70, 80]}, (422, "bad_prompt")),
        ({"foreground": [CENTRE], "result_extension": "/../../x"}, (422, "bad_value")),
        ({"foreground": [CENTRE], "result_extension": [".nrrd"]}, (422, "bad_value")),
        ({"foreground": [CENTRE], "result_dtype": "object"}, (422, "bad_value")),
        ('{"foreground": [[NaN, 0, 0]]}', (400, "bad_params")),
        ("[" * 100_000, (400, "bad_params")),
        ("[1]", (400, "bad_params")),
        ("not json", (400, "bad_params")),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(client, session_id, params, expected):
    assert code(infer(client, session_id, params)) == expected
    assert infer(client, session_id, {"foreground": [CENTRE]}).status_code == 200


@pytest.mark.parametrize("model", ["deepgrow", "FASTSAM3D", "fastsam3d%00", "%2e%2e"])
def test_only_listed_models_are_there(client, session_id, model):
    reply = infer(client, session_id, {"foreground": [CENTRE]}, model=model)
    assert code(reply) == (404, "model_not_found")


@pytest.mark.parametrize("image", ["", "some", "../../etc/passwd", "a\0b"])
def test_images_that_the_server_does_not_have(client, image):
    reply = client.post("/infer/fastsam3d", params={"image": image})
    assert reply.status_code in {404, 422}
    given = client.post("/infer/fastsam3d", params={"image": image}, data={"params": "{}"})
    assert given.status_code in {404, 422}


def test_what_is_no_image_is_refused_without_a_path(client):
    for data in (b"", b"PK\x03\x04" + bytes(100), b"\x80\x04cposix\nsystem", b"\x1f\x8b\0\0"):
        reply = upload(client, data)
        assert code(reply) == (422, "volume_unreadable")
        assert "/tmp" not in reply.text  # noqa: S108


def test_names_of_files_are_not_used(client, phantom_nii, tmp_path):
    names = ["../../evil", "/etc/evil", "CON", "a" * 4000, "x\u202e.nii"]
    for name in names:
        reply = client.put("/session/", files=[("files", (name, phantom_nii))])
        assert reply.status_code == 200
        assert name not in reply.text
        client.delete(f"/session/{reply.json()['session_id']}")
    assert not list(tmp_path.iterdir())


def test_a_mask_of_another_grid_is_refused(client, session_id):
    nrrd = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2 2 2\nencoding: raw\nendian: little\n\n"
    reply = infer(client, session_id, {"foreground": [CENTRE]}, label=nrrd + bytes([1] * 8))
    assert code(reply) == (422, "bad_prompt")


def test_forms_are_bounded(client):
    many = [("files", (str(n), b"x")) for n in range(3)]
    reply = client.post("/infer/fastsam3d", files=many)
    assert code(reply) == (400, "bad_request")
    fields = {f"field{n}": "x" for n in range(50)}
    reply = client.post("/infer/fastsam3d", data=fields, files={"file": b"x"})
    assert code(reply) == (400, "bad_request")
    long = {"params": "x" * 2**21}
    reply = client.post("/infer/fastsam3d", data=long, files={"file": b"x"})
    assert code(reply) == (400, "bad_request")
    broken = "multipart/form-data"
    reply = client.put("/session/", content=b"--x\r\n", headers={"content-type": broken})
    assert reply.status_code == 400


# Starlette leaves the file of a part that has no end to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_form_that_is_cut_off_is_no_upload(client):
    cut = "multipart/form-data; boundary=x"
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nab'
    reply = client.put("/session/", content=body, headers={"content-type": cut})
    assert code(reply) == (400, "no_file")
    gc.collect()
