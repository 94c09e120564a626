"""MONAI Label's own client (PyPI ``monailabel``), on a real port."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from fastsam3d.io import read_volume, write_volume
from fastsam3d.prompts import Point, PromptSet
from fastsam3d.session import Session
from tests.server.conftest import run_live, toy_app
from tests.session.phantoms import fake_predictor

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # It imports the stdlib's cgi.
    monailabel = pytest.importorskip(
        "monailabel.client.client", reason="needs: pip install --no-deps monailabel, and requests"
    )

# It leaves connections and files to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def server(live, tmp_path):
    return monailabel.MONAILabelClient(live.url, tmpdir=str(tmp_path))


@pytest.fixture
def image(phantom, tmp_path) -> Path:
    path = tmp_path / "ct.nii.gz"
    write_volume(phantom, path)
    return path


def test_it_finds_models_and_no_login(server):
    assert not server.auth_enabled()
    assert server.info()["models"]["fastsam3d"]["type"] == "deepgrow"
    assert not server.train_status(check_if_running=True)
    assert server.next_sample("random", {}) == {}


def test_it_segments_an_upload_as_our_api_does(server, image, phantom):
    session_id = server.create_session(str(image))["session_id"]
    assert server.get_session(session_id)["session_id"] == session_id
    params = {"foreground": [[30, 30, 30]], "background": [[45, 45, 45]], "label": "ball"}
    params |= {"result_extension": ".nrrd", "result_dtype": "uint8"}
    path, told = server.infer("fastsam3d", "", params, session_id=session_id)
    assert told["label_names"] == {"ball": 1}
    session = Session(fake_predictor())
    session.set_volume(phantom)
    points = (Point.voxel((30, 30, 30)), Point.voxel((45, 45, 45), positive=False))
    expected = session.predict(PromptSet(points)).mask.array
    found = read_volume(path)
    np.testing.assert_array_equal(found.array, expected)
    assert found.geometry.is_close(phantom.geometry)
    server.remove_session(session_id)
    with pytest.raises(monailabel.MONAILabelClientException, match="session_not_found"):
        server.get_session(session_id)


def test_it_segments_a_file_without_session(server, image):
    path, told = server.infer("fastsam3d", "", {"foreground": [[30, 30, 30]]}, file=str(image))
    assert read_volume(path).array[30, 30, 30] == 1
    assert told["label_names"] == {"structure": 1}


def test_it_segments_several_labels_at_once(server, image):
    session_id = server.create_session(str(image))["session_id"]
    params = {"liver": [[30, 30, 30]], "spleen": [[10, 10, 10]], "background": []}
    path, told = server.infer("fastsam3d_labels", "", params, session_id=session_id)
    labels = read_volume(path).array
    assert labels[30, 30, 30] == told["label_names"]["liver"]
    assert labels[10, 10, 10] == told["label_names"]["spleen"]
    server.remove_session(session_id)


def test_it_keeps_images_and_labels(image, phantom, tmp_path):
    app = toy_app(port=0, datastore_dir=tmp_path / "kept")
    for live in run_live(app):
        server = monailabel.MONAILabelClient(live.url, tmpdir=str(tmp_path))
        assert server.upload_image(str(image), "ct") == {"image": "ct"}
        assert server.next_sample("first", {})["id"] == "ct"
        label, _ = server.infer("fastsam3d", "ct", {"foreground": [[30, 30, 30]]})
        assert server.save_label("ct", label, tag="final")["image"] == "ct"
        assert list(server.datastore()["objects"]["ct"]["labels"]) == ["final"]
        assert server.next_sample("first", {}) == {}
        again = read_volume(server.download_label("ct", "final"))
        np.testing.assert_array_equal(again.array, read_volume(label).array)
        assert again.shape == phantom.shape


def test_it_tells_errors_as_such(server, image):
    session_id = server.create_session(str(image))["session_id"]
    with pytest.raises(monailabel.MONAILabelClientException, match="model_not_found"):
        server.infer("deepgrow", "", {"foreground": [[1, 1, 1]]}, session_id=session_id)
    with pytest.raises(monailabel.MONAILabelClientException, match="bad_prompt"):
        server.infer("fastsam3d", "", {"foreground": [[99, 1, 1]]}, session_id=session_id)
    with pytest.raises(monailabel.MONAILabelClientException, match="image_not_found"):
        server.infer("fastsam3d", "nothing", {"foreground": [[1, 1, 1]]})
    server.remove_session(session_id)
