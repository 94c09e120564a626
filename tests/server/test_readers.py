"""Files are read in a process of their own: what they do to it is a refusal, and nothing more."""

import os
import signal

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, RLELossless

from fastsam3d.errors import GeometryError, VolumeReadError, VolumeTooLargeError
from fastsam3d.io import read_mask, read_volume, write_volume
from fastsam3d.server.child import Child, ChildDiedError
from fastsam3d.server.readers import Readers
from fastsam3d.server.settings import ServerSettings
from fastsam3d.volume import Geometry, Volume
from tests.io.dicom_files import write_series
from tests.io.test_read_dicom import dataset, save
from tests.server.test_uploads import send
from tests.session.phantoms import ball_volume

BAD = "tests.server.bad_children:bad_reader"


@pytest.fixture(scope="module")
def readers():
    found = Readers(ServerSettings(max_voxels=2**20))
    yield found
    found.close()


@pytest.fixture(scope="module")
def bad_readers():
    """Readers whose children do what a file's name says, with little time and memory."""
    settings = ServerSettings(max_voxels=2**20, read_timeout_s=0.5)
    found = Readers(settings, BAD)
    yield found
    found.close()


@pytest.fixture
def nrrd(tmp_path, rng):
    """A file of labels that is not read by our own parser."""
    array = np.asfortranarray(rng.integers(0, 5, (4, 5, 6)).astype(np.uint8))
    write_volume(Volume(array, Geometry((4, 5, 6), np.diag([1, 2, 3, 1]))), tmp_path / "scan.nrrd")
    return tmp_path / "scan.nrrd"


def bad(folder, name):
    (folder / name).write_bytes((folder / "scan.nrrd").read_bytes())
    return folder / name


def compressed_series(folder, **changes):
    volume = ball_volume(shape=(8, 8, 4), centre_mm=(4, 4, 2), radius_mm=2)
    write_series(folder, volume)
    for path in folder.iterdir():
        made = pydicom.dcmread(path)
        made.compress(RLELossless, generate_instance_uid=False)
        for name, value in changes.items():
            setattr(made, name, value)
        made.save_as(path)
    return folder


def test_what_is_read_there_is_what_is_read_here(readers, nrrd):
    found, expected = readers.volume(nrrd), read_volume(nrrd)
    np.testing.assert_array_equal(found.array, expected.array)
    assert found.array.flags.f_contiguous == expected.array.flags.f_contiguous
    assert (found.geometry, found.source) == (expected.geometry, expected.source)
    np.testing.assert_array_equal(readers.mask(nrrd).array, read_mask(nrrd).array)
    assert os.fstat(readers._idle[0]._from.fd).st_size == 0


def test_a_compressed_series_is_read_by_the_one_process_that_is_kept(readers, tmp_path):
    folder = compressed_series(tmp_path)
    found, expected = readers.volume(folder), read_volume(folder)
    np.testing.assert_array_equal(found.array, expected.array)
    assert found.modality == "CT"
    (first,) = readers._idle
    readers.volume(folder)
    assert readers._idle == [first]
    assert first.pid != os.getpid()


def test_nifti_needs_no_process(tmp_path, phantom):
    readers = Readers(ServerSettings())
    write_volume(phantom, tmp_path / "scan.nii.gz")
    assert readers.volume(tmp_path / "scan.nii.gz").shape == phantom.shape
    assert not readers._idle


@pytest.mark.parametrize(
    ("name", "error", "reason"),
    [
        ("segfault", VolumeReadError, "SIGSEGV"),
        ("hang", VolumeReadError, "no answer within 0.5 s"),
        ("busy", VolumeReadError, "SIGXCPU|no answer"),
        ("greedy", VolumeTooLargeError, "more memory"),
        ("bug", RuntimeError, "a bug"),
        ("refused", GeometryError, "must be regular"),
    ],
)
def test_a_file_that_harms_its_reader_is_refused(bad_readers, nrrd, name, error, reason):
    with pytest.raises(error, match=reason):
        bad_readers.volume(bad(nrrd.parent, name))
    assert bad_readers.volume(nrrd).shape == (4, 5, 6)


def test_computing_without_end_is_ended_by_the_system(nrrd):
    child = Child(BAD, {"memory_bytes": 2**30, "cpu_s": 1})
    request = {"path": str(bad(nrrd.parent, "busy"))}
    with pytest.raises(ChildDiedError, match="SIGXCPU"):
        child.call({**request, "max_bytes": 1}, timeout_s=30)
    child.close()


def test_a_reader_that_died_between_two_files_is_replaced(readers, nrrd):
    readers.volume(nrrd)
    (child,) = readers._idle
    os.kill(child.pid, signal.SIGKILL)
    child._process.wait()
    assert readers.volume(nrrd).shape == (4, 5, 6)


@pytest.mark.parametrize(
    ("target", "error", "reason"),
    [
        ("never_starts", GeometryError, "cannot start"),
        ("dies_at_start", ChildDiedError, "status 3"),
    ],
)
def test_a_child_that_does_not_start_says_why(target, error, reason):
    child = Child(f"tests.server.bad_children:{target}", {})
    with pytest.raises(error, match=reason):
        _ = child.facts
    child.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"PixelData": encapsulate([b"\0" * 4])},
        {"PixelData": encapsulate([b"\xff\x4f\xff\x51" + b"\xff" * 200])},
        {"Rows": 60_000, "Columns": 60_000},
    ],
)
@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLosslessSV1, "1.2.3.4.5"])
def test_pixels_that_cannot_be_decoded(readers, tmp_path, changes, syntax):
    for path in compressed_series(tmp_path, **changes).iterdir():
        made = pydicom.dcmread(path)
        made.file_meta.TransferSyntaxUID = syntax
        made.save_as(path)
    with pytest.raises(VolumeReadError):
        readers.volume(tmp_path)


def test_an_upload_that_ends_its_reader_harms_nobody(client, lease, opened, tmp_path, phantom):
    client.app.state.services.readers._target = "tests.server.bad_children:dies_at_start"
    save(dataset(0), tmp_path / "a.dcm")
    reply = send(client, lease, tmp_path)
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "volume_unreadable")
    call = {"type": "object.add"}
    assert client.post("/api/v1/session/call", json=call, headers=opened).status_code == 200
    client.app.state.services.readers._target = "fastsam3d.server.read_child:create"
    write_series(tmp_path, phantom)
    (tmp_path / "a.dcm").unlink()
    assert send(client, lease, tmp_path).json()["shape"] == list(phantom.shape)
