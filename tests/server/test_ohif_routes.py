"""The OHIF page's routes: off by default, its files only, reading requests to the one PACS only."""

import httpx2
import pytest

from fastsam3d.errors import ConfigError
from fastsam3d.server import monailabel
from fastsam3d.server.dicomweb import DicomWeb
from tests.server.conftest import KEY, in_process, toy_app

ROOT = "http://pacs.example:8042/dicom-web"
FRAME = "/proxy/dicom/wado/studies/1.2/series/1.3/instances/1.4/frames/1"


@pytest.fixture
def page(tmp_path):
    """A page like OHIF's, beside a secret."""
    folder = tmp_path / "ohif"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<title>index</title>")
    (folder / "app-config.js").write_text("config")
    (folder / "assets" / "a.png").write_bytes(b"png")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    return folder


@pytest.fixture
def pacs(monkeypatch):
    """What the PACS was asked, while it answers everything."""
    asked = []

    def answer(request):
        asked.append(request)

        async def body():
            yield b"pixels"

        headers = {"content-type": "multipart/related", "set-cookie": "a=b", "x-inner": "1"}
        return httpx2.Response(200, headers=headers, content=body())

    def connect(_):
        return DicomWeb(ROOT, max_bytes=10**6, max_files=9, transport=httpx2.MockTransport(answer))

    monkeypatch.setattr(monailabel, "connect_pacs", connect)
    return asked


@pytest.fixture
def client(page, pacs):  # noqa: ARG001 - it must be there first
    with in_process(toy_app(dicomweb_url=ROOT, ohif_dir=page)) as found:
        yield found


def test_it_is_off_by_default(pacs):
    with in_process(toy_app(dicomweb_url=ROOT)) as client:
        assert client.get("/ohif/").status_code == 404
        assert client.get(FRAME).status_code == 404
    assert not pacs


def test_a_page_without_images_or_without_files_is_a_mistake_of_the_operator(page, tmp_path):
    with pytest.raises(ConfigError, match="give its DICOMweb address"):
        toy_app(ohif_dir=page)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="must hold its page"):
        toy_app(dicomweb_url=ROOT, ohif_dir=tmp_path / "empty")


def test_the_page_s_files_and_its_own_addresses(client):
    assert client.get("/ohif/app-config.js").text == "config"
    assert client.get("/ohif/assets/a.png").headers["content-type"] == "image/png"
    for address in ("/ohif/", "/ohif/viewer?StudyInstanceUIDs=1.2", "/ohif/monai-label"):
        assert "index" in client.get(address).text
    policy = client.get("/ohif/").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe-eval" not in client.get("/").headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    ["../secret.txt", "%2e%2e/secret.txt", "..%2fsecret.txt", "link.txt", "/etc/passwd",
     "assets/../../secret.txt", "a%00.js", "missing.js"],
)  # fmt: skip
def test_no_other_file_is_sent(client, path):
    reply = client.get(f"/ohif/{path}")
    assert "secret" not in reply.text
    assert reply.status_code == 404 or "index" in reply.text


def test_a_frame_comes_from_the_pacs_without_its_other_headers(client, pacs):
    accept = 'multipart/related; type="application/octet-stream"'
    reply = client.get(FRAME, headers={"accept": accept, "cookie": "c=d", "authorization": "e"})
    assert (reply.status_code, reply.content) == (200, b"pixels")
    assert "set-cookie" not in reply.headers
    assert "x-inner" not in reply.headers
    (asked,) = pacs
    assert str(asked.url) == f"{ROOT}/studies/1.2/series/1.3/instances/1.4/frames/1"
    assert asked.headers["accept"] == accept
    assert "cookie" not in asked.headers
    assert "authorization" not in asked.headers


def test_a_query_stays_a_query(client, pacs):
    client.get("/proxy/dicom/qido/studies?PatientName=a%26b*&limit=5&x=http://evil.example/")
    (asked,) = pacs
    assert asked.url.host == "pacs.example"
    assert asked.url.path == "/dicom-web/studies"
    assert asked.url.params["PatientName"] == "a&b*"


@pytest.mark.parametrize(
    "path",
    ["wado/", "wado/system", "wado/../system", "wado/%2e%2e/system", "wado/..%2fsystem",
     "wado/studies/../../system", "wado/studies/1.2/series/1.3/instances/1.4/bulkdata/x",
     "wado/http://evil.example/", "wado//evil.example/studies", "stow/studies", "qido/studies%3fx",
     "wado/studies/1.2%0d%0aHost:%20evil", "wado/studies/" + "1" * 65,
     "wado/studies/%2e%2e/metadata", "wado/studies/1.2/series/%2e%2e/metadata",
     "tools/execute-script"],
)  # fmt: skip
def test_nothing_else_is_passed_on(client, pacs, path):
    assert client.get(f"/proxy/dicom/{path}").status_code in {403, 404}
    assert not pacs


def test_images_are_read_and_never_changed(client, pacs):
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert client.request(method, "/proxy/dicom/wado/studies").status_code == 405
    long = "x" * 5000
    assert client.get(f"/proxy/dicom/qido/studies?a={long}").status_code == 403
    assert not pacs


def test_other_pages_and_strangers_get_no_images(page, pacs):
    with in_process(toy_app(dicomweb_url=ROOT, ohif_dir=page, api_key=KEY)) as client:
        assert client.get(FRAME).status_code == 401
        good = {"authorization": f"Bearer {KEY}"}
        assert client.get(FRAME, headers=good).status_code == 200
        evil = good | {"origin": "https://evil.example"}
        assert client.get(FRAME, headers=evil).status_code == 403
    assert len(pacs) == 1
