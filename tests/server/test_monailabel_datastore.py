"""MONAI Label's datastore: off by default; what clients name never names a file."""

import json

import numpy as np
import pytest

from fastsam3d.io import read_mask, read_volume, write_mask
from tests.server.conftest import in_process, toy_app
from tests.session.phantoms import ball_truth

EVIL = ["../../evil", "/etc/evil", "a/b", "CON", "x" * 200, "a b?&=#%2f.."]


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "kept"
    with in_process(toy_app(datastore_dir=folder)) as client:
        yield client, folder


def put_image(client, name, data):
    return client.put("/datastore/", params={"image": name}, files={"file": ("/x/ct.nii", data)})


def put_label(client, name, data, filename="label.nrrd", **query):
    files = {"label": (filename, data)}
    return client.put(
        "/datastore/label", params={"image": name, **query}, files=files, data={"params": "{}"}
    )


def nrrd_bytes(mask, tmp_path):
    write_mask(mask, tmp_path / "given.nrrd")
    return (tmp_path / "given.nrrd").read_bytes()


def code(reply):
    return reply.status_code, reply.json()["error"]["code"]


def test_without_a_folder_nothing_is_kept(client, phantom_nii):
    assert client.get("/datastore/?output=all").json() == {"objects": {}}
    assert client.get("/datastore/").json()["total"] == 0
    assert code(put_image(client, "ct", phantom_nii)) == (404, "no_datastore")
    assert code(put_label(client, "ct", b"x")) == (404, "no_datastore")
    assert code(client.get("/datastore/image?image=ct")) == (404, "no_datastore")
    assert code(client.get("/datastore/label?label=ct&tag=final")) == (404, "no_datastore")


def test_an_image_is_kept_segmented_and_labelled(store, phantom, phantom_nii, tmp_path):
    client, _ = store
    assert put_image(client, "ct 1", phantom_nii).json() == {"image": "ct 1"}
    assert client.post("/activelearning/first", json={}).json()["id"] == "ct 1"
    (tmp_path / "back.nii.gz").write_bytes(client.get("/datastore/image?image=ct 1").content)
    np.testing.assert_array_equal(read_volume(tmp_path / "back.nii.gz").array, phantom.array)
    params = {"params": json.dumps({"foreground": [[30, 30, 30]]})}
    query = {"image": "ct 1", "output": "image"}
    mask = client.post("/infer/fastsam3d", params=query, data=params).content
    assert put_label(client, "ct 1", mask).json() == {"image": "ct 1", "label": "ct 1"}
    reply = client.get("/datastore/label", params={"label": "ct 1", "tag": "final"})
    assert 'filename="label.nrrd"' in reply.headers["content-disposition"]
    (tmp_path / "label.nrrd").write_bytes(reply.content)
    (tmp_path / "mask.nrrd").write_bytes(mask)
    kept = read_mask(tmp_path / "label.nrrd").array
    np.testing.assert_array_equal(kept, read_mask(tmp_path / "mask.nrrd").array)
    assert client.get("/info/").json()["datastore"] == {
        "total": 1, "completed": 1, "label_tags": {"final": 1},
    }  # fmt: skip
    assert client.post("/activelearning/first", json={}).json() == {}
    listed = client.get("/datastore/?output=all").json()["objects"]
    assert list(listed["ct 1"]["labels"]) == ["final"]


def test_a_label_of_bare_voxels_runs_along_i_first(store, phantom, phantom_nii, tmp_path):
    client, _ = store
    put_image(client, "ct", phantom_nii)
    truth = ball_truth(phantom.geometry).astype(np.uint8)
    data = truth.tobytes(order="F")
    assert put_label(client, "ct", data, "label.bin", tag="ohif").status_code == 200
    reply = client.get("/datastore/label?label=ct&tag=ohif")
    (tmp_path / "label.nrrd").write_bytes(reply.content)
    np.testing.assert_array_equal(read_mask(tmp_path / "label.nrrd").array, truth)
    assert code(put_label(client, "ct", data[:-1], "label.bin")) == (422, "bad_label")
    assert code(put_label(client, "ct", data + b"x", "label.bin")) == (422, "bad_label")


@pytest.mark.parametrize("name", EVIL)
def test_names_from_outside_name_no_file(store, phantom, phantom_nii, tmp_path, name):
    client, folder = store
    assert put_image(client, name, phantom_nii).json() == {"image": name}
    label = nrrd_bytes(phantom.new_mask(ball_truth(phantom.geometry)), tmp_path)
    assert put_label(client, name, label, tag=name).status_code == 200
    assert client.get("/datastore/label", params={"label": name, "tag": name}).status_code == 200
    (only,) = folder.iterdir()
    assert only.name.isalnum()
    assert {path.name.partition(".")[0].partition("-")[0] for path in only.iterdir()} == {
        "image", "label", "record",
    }  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"kept", "given.nrrd"}


def test_what_is_not_there_or_does_not_fit_is_refused(store, phantom, phantom_nii, tmp_path):
    client, _ = store
    for name in ("a\nb", "a\0b", "\u202e.nii"):
        assert code(put_image(client, name, phantom_nii)) == (422, "bad_value")
    assert code(put_image(client, "x" * 201, phantom_nii)) == (422, "invalid_request")
    assert code(put_image(client, "a", b"PK\x03\x04 zip")) == (422, "volume_unreadable")
    assert code(client.get("/datastore/image?image=a")) == (404, "image_not_found")
    label = nrrd_bytes(phantom.new_mask(np.ones(phantom.shape, np.uint8)), tmp_path)
    assert code(put_label(client, "a", label)) == (404, "image_not_found")
    assert code(client.get("/datastore/label?label=a&tag=b")) == (404, "label_not_found")
    put_image(client, "a", phantom_nii)
    small = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n\n" + bytes(8)
    assert code(put_label(client, "a", small))[0] == 422
    assert client.get("/datastore/").json()["total"] == 1


def test_a_new_image_of_a_name_is_the_one_that_is_segmented(store, phantom_nii):
    client, _ = store
    put_image(client, "ct", phantom_nii)
    params = {"params": json.dumps({"foreground": [[30, 30, 30]]})}
    query = {"image": "ct", "output": "json"}
    assert client.post("/infer/fastsam3d", params=query, data=params).status_code == 200
    small = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 9 9 9\nencoding: raw\n\n" + bytes(729)
    assert put_image(client, "ct", small).status_code == 200
    reply = client.post("/infer/fastsam3d", params=query, data=params)
    assert code(reply) == (422, "bad_prompt")
