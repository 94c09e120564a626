"""How the page's files are served: whole, offline, under a strict policy."""

import gzip
import re
from importlib.resources import files

import pytest

from fastsam3d.server import viewer
from tests.server.conftest import in_process, toy_app


@pytest.fixture(scope="module")
def client():
    with in_process(toy_app(api_key="a-key-for-tests-only")) as client:
        yield client


def test_the_page_needs_no_key_and_forbids_inline_code(client):
    reply = client.get("/")
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    policy = reply.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", reply.text)


def test_all_files_that_the_page_names_exist_and_none_is_elsewhere(client):
    page = client.get("/").text
    names = set(re.findall(r'(?:src|href)="([^"#]+)', page))
    modules = files("fastsam3d.server.viewer") / "static" / "js"
    for module in modules.iterdir():
        names |= {
            f"viewer/js/{name}"
            for name in re.findall(r'from "\./(.+?)"', module.read_text("utf-8"))
        }
    assert len(names) > 10
    for name in names:
        assert client.get(f"/{name}").status_code == 200, name


def test_icons_that_are_used_are_drawn(client):
    icons = set(re.findall(r'<symbol id="([\w-]+)"', client.get("/viewer/icons.svg").text))
    used = set(re.findall(r'icons\.svg#([\w-]+)"', client.get("/").text))
    assert used
    assert used <= icons


def test_unchanged_files_are_not_sent_again_and_large_ones_travel_compressed(client):
    first = client.get("/viewer/niivue.umd.js", headers={"Accept-Encoding": "gzip"})
    assert first.headers["content-encoding"] == "gzip"
    assert int(first.headers["content-length"]) < 900_000
    again = client.get("/viewer/niivue.umd.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path", ["/viewer/", "/viewer/__init__.py", "/viewer/..%2f__init__.py", "/viewer/js"]
)
def test_nothing_but_the_listed_files_is_served(client, path):
    assert client.get(path).status_code == 404


def test_compressed_content_is_the_file():
    for file in viewer.read_static_files().values():
        if file.compressed is not file.content:
            assert gzip.decompress(file.compressed) == file.content
