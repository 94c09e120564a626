"""Headless Chromium and a server with a fake model, for tests of the page."""

import shutil
import time
from contextlib import contextmanager

import pytest

from tests.server.conftest import run_live

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
)
# Small, for graphics are drawn in software here.
VIEWPORT = {"width": 1040, "height": 460}
APP = "globalThis.fastsam3dViewer"
READY = f"{APP}?.state.phase === 'ready'"
IDLE = f"{APP}.state.pending.length === 0"


@contextmanager
def chromium():
    """Start a browser; tests are skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def serving(app):
    """Serve an app on a free loopback port and give the address of its page."""
    for live in run_live(app):
        yield f"{live.url}/"


def until(page, expression, timeout_s=30):
    """Wait until JavaScript is true; the page's policy forbids Playwright's own way."""
    deadline = time.monotonic() + timeout_s
    while not page.evaluate(f"Boolean({expression})"):
        assert time.monotonic() < deadline, f"never true: {expression}"
        page.wait_for_timeout(20)


@contextmanager
def opened(browser, address, **options):
    """Open the page; what it reports as an error fails the test."""
    context = browser.new_context(viewport=VIEWPORT, **options)
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda said: problems.append(said.text) if _is_csp(said) else None)
    page.goto(address)
    until(page, f"{APP}?.state.connection !== 'connecting' && {APP}")
    try:
        yield page
        assert not problems, problems
    finally:
        context.close()


def _is_csp(message):
    return "Content Security Policy" in message.text


def open_scan(page, path):
    """Open a file through the file button and wait until it can be clicked."""
    page.evaluate(f"globalThis.former = {APP}.state.scan")
    page.set_input_files("#file-input", path)
    until(page, f"{APP}.state.scan !== globalThis.former && {READY}")


def stage_position(page, plane, voxel):
    """Where on the page a voxel of the file lies, on the slice through it, which is shown first."""
    script = f"""([plane, voxel]) => {{
        const view = {APP}.view;
        view.crosshair = view.fracOf(voxel);
        return new Promise((done) => view.addEventListener("drawn", () => {{
            const rect = document.getElementById("stage").getBoundingClientRect();
            const [x, y] = view.project(plane, view.fracOf(voxel));
            done([rect.x + x, rect.y + y]);
        }}, {{ once: true }}));
    }}"""
    return page.evaluate(script, [plane, list(voxel)])


def click_voxel(page, plane, voxel, **options):
    """Click on a voxel and wait for the answer."""
    x, y = stage_position(page, plane, voxel)
    page.mouse.click(x, y, **options)
    until(page, f"{APP}.state.latency !== null && {IDLE}")
