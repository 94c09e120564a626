"""From the click to the mask on the screen, in the web viewer, beside the server's own click time.

    python benchmarks/viewer_latency.py SCAN.nii.gz I,J,K --output benchmarks/viewer_latency.json

Headless Chromium draws in software, so its part is an upper bound of what a graphics card needs.
A click is the release of the mouse button; shown is when the pixels of the new mask have been
computed (`readPixels` waits for them). Each measured click is the second of its object, at another
voxel every time, and is undone before the next, so none is answered from memory. The goal: at most
1.3 times the server's `click_ms` plus 60 ms.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))
from playwright.sync_api import sync_playwright
from serving import facts, server, write

if TYPE_CHECKING:
    from playwright.sync_api import Page

APP = "globalThis.fastsam3dViewer"
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
GOAL_FACTOR, GOAL_MS = 1.3, 60.0
POLL_MS = 200  # the page takes its own times; asking more often takes the cores of the model
WATCH = f"""() => {{
    const {{ view }} = {APP};
    globalThis.times = {{ clicked: 0, shown: 0 }};
    document.getElementById("stage").addEventListener("pointerup", (event) => {{
        globalThis.times = {{ clicked: event.timeStamp, shown: 0 }};
    }}, true);
    view.addEventListener("drawn", () => {{
        const mask = {APP}.masks.get(1);
        if (!mask || mask === globalThis.former || globalThis.times.shown) return;
        view.nv.gl.readPixels(0, 0, 1, 1, 6408, 5121, new Uint8Array(4));
        globalThis.times.shown = performance.now();
    }});
}}"""
PROJECT = f"""([voxel]) => {{
    const {{ view }} = {APP};
    view.crosshair = view.fracOf(voxel);
    return new Promise((done) => view.addEventListener("drawn", () => {{
        const rect = document.getElementById("stage").getBoundingClientRect();
        const [x, y] = view.project("axial", view.fracOf(voxel));
        done([rect.x + x, rect.y + y]);
    }}, {{ once: true }}));
}}"""


def until(page: Page, expression: str, timeout_s: float = 120.0) -> None:
    """Wait until JavaScript is true; the page's policy forbids Playwright's own way."""
    deadline = time.monotonic() + timeout_s
    while not page.evaluate(f"Boolean({expression})"):
        if time.monotonic() > deadline:
            raise TimeoutError(expression)
        page.wait_for_timeout(POLL_MS)


def click(page: Page, voxel: list[int]) -> dict[str, float]:
    """Click on a voxel and return what it took, in milliseconds."""
    x, y = page.evaluate(PROJECT, [voxel])
    page.evaluate(f"globalThis.former = {APP}.masks.get(1)")
    page.mouse.click(x, y)
    until(page, f"globalThis.times.shown && {APP}.state.pending.length === 0")
    header: dict[str, Any] = page.evaluate(f"{APP}.masks.get(1).header")
    times = page.evaluate("globalThis.times")
    return {
        "shown_ms": times["shown"] - times["clicked"],
        "click_ms": header["click_ms"],
        "encode_ms": header["encode_ms"],
    }


def measure(page: Page, scan: Path, first: list[int], count: int) -> list[dict[str, float]]:
    """Open a scan, click once, then click and undo `count` times."""
    page.set_input_files("#file-input", scan)
    until(page, f"{APP}.state.phase === 'ready'")
    page.evaluate(WATCH)
    click(page, first)
    rng = random.Random(0)  # noqa: S311 - places to click
    rows: list[dict[str, float]] = []
    for _ in range(count):
        offset = [rng.choice((-3, -2, -1, 1, 2, 3)), rng.randint(-3, 3), 0]
        rows.append(click(page, [a + b for a, b in zip(first, offset, strict=True)]))
        page.keyboard.press("Control+z")
        until(page, f"{APP}.state.study.objects[0].prompts.length === 1")
        # Measurements of the object are asked for after a pause; they are no part of a click.
        page.wait_for_timeout(700)
    return rows


def main() -> int:
    """Measure; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scan", type=Path)
    parser.add_argument("first", type=lambda text: [int(word) for word in text.split(",")])
    parser.add_argument("--clicks", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--eager", action="store_true", help="draw at the click, too")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    record: dict[str, Any] = facts()
    words = ("--threads", str(options.threads))
    with server(*words) as (address, _), sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(address)
        until(page, f"{APP}?.state.connection === 'online'")
        if options.eager:
            page.evaluate(f"{APP}.view.isSoftware = false")
        rows = measure(page, options.scan, options.first, options.clicks)
        record |= {"browser": browser.version, "threads": options.threads}
        browser.close()
    decoded = [row for row in rows if not row["encode_ms"]]
    shown = statistics.median(row["shown_ms"] for row in decoded)
    clicked = statistics.median(row["click_ms"] for row in decoded)
    record |= {
        "clicks": len(decoded),
        "clicks_that_encoded": len(rows) - len(decoded),
        "shown_ms_p50": round(shown, 1),
        "server_click_ms_p50": round(clicked, 1),
        "goal_ms": round(GOAL_FACTOR * clicked + GOAL_MS, 1),
        "is_within_goal": shown <= GOAL_FACTOR * clicked + GOAL_MS,
        "rows": [{name: round(value, 1) for name, value in row.items()} for row in rows],
    }
    write(record, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
