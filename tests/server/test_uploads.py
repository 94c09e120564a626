"""Folders of slices on their way in, as a browser sends them."""

import numpy as np
import pytest

from fastsam3d.io import read_volume
from tests.io.test_read_dicom import SLICES, dataset, save


@pytest.fixture
def folder(tmp_path):
    for index in range(SLICES):
        save(dataset(index), tmp_path / f"{(index * 2) % SLICES}.dcm")
    return tmp_path


def send(client, lease, folder, query=""):
    files = [("files", (path.name, path.read_bytes())) for path in sorted(folder.iterdir())]
    return client.post(f"/api/v1/session/volume{query}", files=files, headers=lease)


def test_a_series_is_the_volume_that_its_folder_is(client, lease, folder):
    told = send(client, lease, folder).json()
    expected = read_volume(folder)
    assert told["shape"] == list(expected.shape)
    assert told["modality"] == "CT"
    np.testing.assert_allclose(told["affine"], expected.geometry.affine)
    assert client.app.state.leases.rooms[0].volume.geometry == expected.geometry


def test_a_series_with_a_missing_slice_is_refused_by_its_uid(client, lease, folder):
    (folder / "2.dcm").unlink()
    reply = send(client, lease, folder)
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "volume_unreadable")
    assert "missing after 1.2.3." in reply.json()["error"]["message"]


def test_of_several_series_one_must_be_chosen(client, lease, folder):
    for index in range(SLICES):
        changes = {"SeriesInstanceUID": "1.2.10", "SOPInstanceUID": f"1.2.4.{index}"}
        save(dataset(index, **changes), folder / f"other{index}.dcm")
    assert "1.2.10" in send(client, lease, folder).json()["error"]["message"]
    assert send(client, lease, folder, "?series_uid=1.2.10").json()["shape"][2] == SLICES
    assert send(client, lease, folder, "?series_uid=../..").status_code == 422


def test_one_slice_is_a_volume(client, lease, tmp_path):
    save(dataset(0), tmp_path / "a.dcm")
    assert send(client, lease, tmp_path).json()["shape"][2] == 1
