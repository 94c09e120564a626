"""The OHIF page of MONAI Label in headless Chromium: what a reader of it does, as functions."""

import contextlib
import importlib.util
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

CHROMIUM = shutil.which("chromium")
_FOUND = importlib.util.find_spec("monailabel")
PAGE = Path((_FOUND and _FOUND.origin) or "/none").parent / "endpoints/static/ohif"
IS_HERE = CHROMIUM is not None and (PAGE / "index.html").exists()
REASON = "needs: apt-get install chromium; pip install playwright; pip install --no-deps monailabel"
# Software rendering, and no traffic of the browser's own.
FLAGS = [
    "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-gl=angle", "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]  # fmt: skip
WAIT_MS = 60_000


@dataclass(frozen=True)
class Reply:
    """What the page asked (`params`) and what it got."""

    params: dict
    status: int
    body: bytes


@contextlib.contextmanager
def browser_page(*, width=1280, height=800):
    """Yield an empty page that reaches loopback only."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - not everywhere

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(WAIT_MS)
        page.route(
            lambda url: "//127.0.0.1:" not in url and url.startswith("http"),
            lambda route: route.abort(),
        )
        yield page
        browser.close()


def open_study(page, url, study_uid):
    """Show a study and connect the panel of MONAI Label to the server."""
    page.goto(f"{url}/ohif/monai-label?StudyInstanceUIDs={study_uid}")
    page.locator("#monailabelServerURL").fill(f"{url}/")
    page.get_by_text("Confirm and Hide").click()
    page.wait_for_function("document.querySelectorAll('[data-cy=viewport-pane] canvas').length > 2")
    page.wait_for_timeout(3000)  # The page tells nobody when its volumes are complete.
    page.locator(".settingsTable button").click()
    page.locator(".tab-label", has_text="Point Prompts").click()


def choose_label(page, name):
    """Let the next clicks be on the object of a name."""
    page.locator("tr.clickable-row", has_text=name).first.click()


def click_axial(page, right, down):
    """Click into the axial view, at fractions of its width and height, and run the model.

    Returns:
        What the page asked and got.
    """
    box = page.locator("[data-cy=viewport-pane]").first.bounding_box()
    page.mouse.click(box["x"] + right * box["width"], box["y"] + down * box["height"])
    page.wait_for_timeout(500)  # The page takes a quick second click for a double click.
    with page.expect_response(lambda reply: "/infer/" in reply.url) as caught:
        page.locator("button[title='Run PointPrompts']").click()
    reply = caught.value
    return Reply(form_params(reply.request.post_data_buffer), reply.status, reply.body())


def form_params(body):
    """Return the field ``params`` of a form."""
    start = body.index(b"{", body.index(b'name="params"'))
    return json.JSONDecoder().raw_decode(body[start:].decode("utf-8", "replace"))[0]
