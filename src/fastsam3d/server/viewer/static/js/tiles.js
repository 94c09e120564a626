/** What lies over each tile: its name, slice number, letters, slider; and its keyboard focus. */

import { element, iconButton, byId } from "./dom.js";
import { PLANES } from "./planes.js";

export class Tiles {
  constructor(app, view) {
    this.app = app;
    this.view = view;
    this.holder = byId("tiles");
    this.parts = new Map();
    view.addEventListener("layout", () => this.build());
    view.addEventListener("drawn", () => this.update());
    this.build();
  }

  build() {
    const focused = document.activeElement?.closest?.(".tile")?.dataset.plane;
    const layout = this.view.tiles.map((t) => t.plane).join();
    if (layout !== this.layout) {
      this.layout = layout;
      this.parts.clear();
      this.holder.replaceChildren(...this.view.tiles.map(({ plane }) => this.tile(plane)));
      if (focused) this.parts.get(focused)?.node.focus({ focusVisible: false });
    }
    for (const { plane, x, y, w, h } of this.view.tiles) {
      Object.assign(this.parts.get(plane).node.style, {
        left: `${x}px`, top: `${y}px`, width: `${w}px`, height: `${h}px`,
      });
    }
    this.update();
  }

  tile(plane) {
    const title = PLANES[plane]?.title ?? "3D";
    const maximise = iconButton("maximise", `${title}: fill the window, or go back (Z)`, () =>
      this.app.toggleSingle(plane),
    );
    const slice = element("span", { class: "slice" });
    const node = element(
      "div",
      { class: "tile", "data-plane": plane, tabindex: "0", role: "group", "aria-label": this.label(plane) },
      element("div", { class: "tile-head" }, element("b", {}, title), slice, maximise),
    );
    const part = { node, slice, slider: null };
    if (PLANES[plane]) {
      part.slider = element("input", {
        type: "range", min: 1, max: 1, "aria-label": `${title} slice`, tabindex: "-1",
        oninput: () => this.view.setSlice(plane, Number(part.slider.value) - 1),
      });
      node.append(part.slider, ...letters(PLANES[plane].letters));
    }
    this.parts.set(plane, part);
    return node;
  }

  label(plane) {
    if (!PLANES[plane]) return "3D view. Arrow keys turn it.";
    return `${PLANES[plane].title} slice. Arrow keys move the cross, Page Up and Page Down the slice, Enter adds, Backspace removes.`;
  }

  update() {
    if (!this.view.grid) return;
    for (const [plane, { slice, slider }] of this.parts) {
      if (!slider) continue;
      const [index, count] = [this.view.sliceIndex(plane), this.view.sliceCount(plane)];
      slice.textContent = `${index + 1} / ${count}`;
      slider.max = count;
      slider.value = index + 1;
      slider.setAttribute("aria-valuetext", `${index + 1} of ${count}`);
    }
  }
}

/** Patient directions; left on the screen is the patient's right, as radiologists read. */
function letters([left, top, right, bottom]) {
  const places = { left, top, right, bottom };
  return Object.entries(places).map(([place, text]) =>
    element("span", { class: `letter ${place}`, "aria-hidden": "true" }, text),
  );
}
