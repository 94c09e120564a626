"""Series from a PACS: what is asked, what a bad PACS is answered, and that no other is reached."""

import asyncio
import json

import httpx2
import numpy as np
import pydicom
import pytest

from fastsam3d.errors import ConfigError
from fastsam3d.io import read_volume
from fastsam3d.server import monailabel
from fastsam3d.server.dicomweb import DicomWeb
from fastsam3d.server.errors import ApiError
from tests.io.dicom_files import SERIES, STUDY, write_series
from tests.server.conftest import in_process, toy_app
from tests.session.phantoms import ball_volume

ROOT = "http://pacs.example:8042/dicom-web"
BOUNDARY = "a-boundary"


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    folder = tmp_path_factory.mktemp("series")
    write_series(folder, ball_volume(shape=(40, 40, 12), centre_mm=(20, 20, 6), radius_mm=5))
    return folder


def parts(files):
    head = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    body = b"".join(head + data + b"\r\n" for data in files)
    return body + f"--{BOUNDARY}--\r\n".encode()


def multipart(body, **headers):
    kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
    return httpx2.Response(200, content=body, headers={"content-type": kind, **headers})


def found(study=STUDY):
    return httpx2.Response(200, json=[{"0020000D": {"vr": "UI", "Value": [study]}}])


def arriving(reply):
    """Return a reply whose body has not been read yet, as one from the network."""

    async def body():
        for start in range(0, len(reply.content), 1000):
            yield reply.content[start : start + 1000]

    return httpx2.Response(reply.status_code, headers=reply.headers, content=body())


class Pacs:
    """A PACS that gives prepared replies and remembers what it was asked."""

    def __init__(self, query=None, images=None):
        self.query, self.images, self.asked = query or found(), images, []

    def __call__(self, request):
        self.asked.append(str(request.url))
        return arriving(self.query if request.url.path.endswith("/series") else self.images)

    def client(self, **options):
        options = {"max_bytes": 10**7, "max_files": 100} | options
        return DicomWeb(ROOT, transport=httpx2.MockTransport(self), **options)


def fetch(pacs, folder, uid=SERIES, **options):
    return asyncio.run(pacs.client(**options).fetch_series(uid, folder))


def test_a_series_is_found_and_kept_as_it_was_sent(series, tmp_path):
    files = [path.read_bytes() for path in series.iterdir()]
    pacs = Pacs(images=multipart(parts(files)))
    assert fetch(pacs, tmp_path) == len(files)
    assert pacs.asked == [
        f"{ROOT}/series?SeriesInstanceUID={SERIES}&limit=2",
        f"{ROOT}/studies/{STUDY}/series/{SERIES}",
    ]
    assert {path.read_bytes() for path in tmp_path.iterdir()} == set(files)
    np.testing.assert_array_equal(read_volume(tmp_path).array, read_volume(series).array)


@pytest.mark.parametrize(
    "uid",
    ["", ".", "..", "1..2", "1.2/../../system", "1.2?x=y", "1.2#", "1.2\n", "http://evil.example",
     "@evil.example", "1.2%2f..", "1." * 40, "\u0661.\u0662", "*"],
)  # fmt: skip
def test_only_uids_are_looked_for(uid, tmp_path):
    pacs = Pacs()
    with pytest.raises(ApiError, match="check the UID"):
        fetch(pacs, tmp_path, uid)
    assert pacs.asked == []


def test_a_series_that_is_not_there(tmp_path):
    for reply in (httpx2.Response(200, json=[]), httpx2.Response(204), httpx2.Response(404)):
        with pytest.raises(ApiError) as caught:
            fetch(Pacs(query=reply), tmp_path)
        assert (caught.value.status, caught.value.code) == (404, "image_not_found")


def test_no_other_address_is_ever_asked(tmp_path):
    elsewhere = {"location": "http://169.254.169.254/latest/meta-data"}
    for status in (301, 302, 307, 308):
        pacs = Pacs(query=httpx2.Response(status, headers=elsewhere))
        with pytest.raises(ApiError) as caught:
            fetch(pacs, tmp_path)
        assert caught.value.code == "pacs_failed"
        assert len(pacs.asked) == 1
    for study in ("../../system", "http://evil.example/", 7, None, "1.2/x"):
        pacs = Pacs(query=found(study))
        with pytest.raises(ApiError) as caught:
            fetch(pacs, tmp_path)
        assert caught.value.code == "pacs_failed"
        assert len(pacs.asked) == 1


@pytest.mark.parametrize(
    "reply",
    [
        httpx2.Response(200, content=b"not json"),
        httpx2.Response(200, content=b"[" * 100_000),
        httpx2.Response(200, json={}),
        httpx2.Response(200, json=[{}]),
        httpx2.Response(200, json=[[]]),
        httpx2.Response(500),
        httpx2.Response(401),
    ],
)
def test_a_query_that_is_answered_with_nonsense(reply, tmp_path):
    with pytest.raises(ApiError) as caught:
        fetch(Pacs(query=reply), tmp_path)
    assert (caught.value.status, caught.value.code) == (502, "pacs_failed")
    assert "pacs.example" not in caught.value.message


@pytest.mark.parametrize(
    "reply",
    [
        httpx2.Response(200, content=b"DICM", headers={"content-type": "application/dicom"}),
        httpx2.Response(200, headers={"content-type": "multipart/related"}),
        httpx2.Response(200, headers={"content-type": f"multipart/related; boundary={'x' * 999}"}),
        multipart(b"no boundary at all"),
        multipart(parts([b"a"])[:-8]),
        multipart(parts([])),
        multipart(b"", **{"content-encoding": "gzip"}),
        httpx2.Response(500),
    ],
)
def test_images_that_are_answered_with_nonsense(reply, tmp_path):
    with pytest.raises(ApiError) as caught:
        fetch(Pacs(images=reply), tmp_path)
    assert (caught.value.status, caught.value.code) == (502, "pacs_failed")


def test_what_comes_back_is_bounded(tmp_path):
    for reply, options in (
        (multipart(parts([bytes(1000)] * 9)), {"max_bytes": 5000}),
        (multipart(parts([b"a"] * 9)), {"max_files": 8}),
    ):
        with pytest.raises(ApiError) as caught:
            fetch(Pacs(images=reply), tmp_path, **options)
        assert caught.value.code == "too_large"
    query = httpx2.Response(200, content=b"[" + b" " * 2**21 + b"]")
    with pytest.raises(ApiError) as caught:
        fetch(Pacs(query=query), tmp_path)
    assert caught.value.code == "too_large"


def test_an_unreachable_pacs_is_an_error_of_the_gateway(tmp_path):
    def fail(request):
        raise httpx2.ConnectError("refused", request=request)

    client = DicomWeb(ROOT, max_bytes=1, max_files=1, transport=httpx2.MockTransport(fail))
    with pytest.raises(ApiError) as caught:
        asyncio.run(client.fetch_series(SERIES, tmp_path))
    assert (caught.value.status, caught.value.code) == (502, "pacs_failed")


@pytest.mark.parametrize("root", ["pacs", "file:///etc", "ftp://x", "http://", "http://x/?a=b"])
def test_the_root_must_be_an_address(root):
    with pytest.raises(ConfigError, match="must look like"):
        toy_app(dicomweb_url=root)


def test_clients_segment_a_series_by_its_uid(series, monkeypatch, tmp_path):
    files = [path.read_bytes() for path in series.iterdir()]
    pacs = Pacs(images=multipart(parts(files)))
    monkeypatch.setattr(monailabel, "connect_pacs", lambda _: pacs.client())
    params = json.dumps({"foreground": [[20, 20, 6]], "label": "ball"})

    def infer(image, output):
        query = {"image": image, "output": output}
        return client.post("/infer/fastsam3d", params=query, data={"params": params})

    with in_process(toy_app(dicomweb_url=ROOT)) as client:
        (tmp_path / "mask.nrrd").write_bytes(infer(SERIES, "image").content)
        mask = read_volume(tmp_path / "mask.nrrd")
        assert mask.geometry.is_close(read_volume(series).geometry)
        assert mask.array[20, 20, 6] == 1
        # The series is at hand now.
        seg = infer(SERIES, "dicom_seg")
        assert len(pacs.asked) == 2
        assert seg.headers["content-type"] == "application/dicom"
        (tmp_path / "seg.dcm").write_bytes(seg.content)
        assert infer("9.9/..", "image").json()["error"]["code"] == "image_not_found"
    segment = pydicom.dcmread(tmp_path / "seg.dcm")
    assert segment.SegmentSequence[0].SegmentLabel == "ball"
    assert int(segment.pixel_array.sum()) == int(mask.array.sum())


def test_dicom_seg_needs_a_series(client, phantom_nii):
    query = {"output": "dicom_seg"}
    data = {"params": json.dumps({"foreground": [[30, 30, 30]]})}
    reply = client.post(
        "/infer/fastsam3d", params=query, data=data, files={"file": ("a.nii", phantom_nii)}
    )
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "no_series")
