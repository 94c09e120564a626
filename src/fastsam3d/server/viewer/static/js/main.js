/** Puts the page together. */

import { App } from "./app.js";
import { byId, element } from "./dom.js";
import { toast, wireDialogs } from "./feedback.js";
import { droppedFiles, usable } from "./files.js";
import { Marks } from "./marks.js";
import { buildPanels, drawReadout } from "./panels.js";
import { presetsFor } from "./presets.js";
import { openHelp, wireShortcuts } from "./shortcuts.js";
import { Store } from "./store.js";
import { Tiles } from "./tiles.js";
import { Tools } from "./tools.js";
import { View } from "./view.js";

async function boot() {
  wireDialogs();
  const store = new Store();
  const stage = byId("stage");
  const view = new View(stage, byId("canvas"));
  try {
    await view.start();
  } catch {
    byId("welcome").replaceChildren(
      element("h2", {}, "This browser cannot show 3D images"),
      element("p", {}, "WebGL 2 is missing or switched off. A current Chrome, Edge, Firefox or Safari has it."),
    );
    return;
  }
  const app = new App(store, view);
  store.set({ with3d: view.with3d });
  const marks = new Marks(store, view);
  new Tiles(app, view);
  new Tools(app, marks, stage);
  buildPanels(app);
  wireFiles(app);
  wireToolbar(app);
  wireRail(app);
  wireDisplay(app);
  wireShortcuts(app);
  stage.addEventListener("hover", ({ detail }) => drawReadout(app, detail.frac));
  store.watch(["phase"], ({ phase }) => {
    document.body.dataset.phase = phase;
    view.relayout();
  });
  drawPrivacy();
  // For tests, and for people who look under the bonnet.
  globalThis.fastsam3dViewer = app;
  if (!(await app.link.resume())) await app.link.connect();
}

/** Where the images go, said before anything is opened. */
function drawPrivacy() {
  const isHere = ["127.0.0.1", "localhost", "[::1]"].includes(location.hostname);
  byId("privacy").textContent = isHere
    ? "Images stay on this computer: they are read by the program that opened this page."
    : `Images are sent to ${location.host} and nowhere else.`;
}

function wireFiles(app) {
  const fileInput = byId("file-input");
  const folderInput = byId("folder-input");
  for (const input of [fileInput, folderInput]) {
    input.addEventListener("change", () => {
      const files = usable([...input.files]);
      input.value = "";
      app.scans.open(files);
    });
  }
  byId("open").onclick = () => fileInput.click();
  byId("choose-file").onclick = () => fileInput.click();
  byId("choose-folder").onclick = () => folderInput.click();
  const hint = byId("drop-hint");
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    hint.hidden = false;
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) hint.hidden = true;
  });
  document.addEventListener("drop", async (event) => {
    event.preventDefault();
    hint.hidden = true;
    try {
      const files = await droppedFiles(event.dataTransfer);
      if (files.length) app.scans.open(files);
      else toast("Nothing to open there", "Drop a scan: NIfTI, NRRD, MHA or a DICOM folder.");
    } catch (error) {
      toast("That could not be read", error.message);
    }
  });
}

function wireToolbar(app) {
  const { store, view } = app;
  const preset = byId("preset");
  preset.onchange = () => app.scans.choosePreset(preset.value);
  store.watch(["scan", "preset"], ({ scan, preset: chosen }) => {
    byId("scan").hidden = !scan;
    byId("scan-name").textContent = scan?.name ?? "";
    byId("scan-name").title = scan?.name ?? "";
    byId("scan-facts").textContent = scan?.shape ? factsOf(scan) : "";
    drawTimes(app, scan);
    if (!scan?.intensity) return;
    const presets = presetsFor(scan);
    const option = ({ id, title }) => element("option", { value: id }, title);
    const groups = [...new Set(presets.map((p) => p.group))].map((label) =>
      element("optgroup", { label }, ...presets.filter((p) => p.group === label).map(option)),
    );
    if (chosen === "custom") groups.push(option({ id: "custom", title: "By hand" }));
    preset.replaceChildren(...groups);
    preset.value = chosen;
    const [low, high] = view.window;
    byId("window-level").textContent = `L ${short((low + high) / 2)}  W ${short(high - low)}`;
  });
  for (const button of document.querySelectorAll("[data-layout]")) {
    button.onclick = () => app.setLayout(button.dataset.layout);
  }
  store.watch(["layout", "with3d"], ({ layout, with3d }) => {
    for (const button of document.querySelectorAll("[data-layout]")) {
      button.setAttribute("aria-pressed", String(button.dataset.layout === layout));
    }
    byId("toggle-3d").setAttribute("aria-pressed", String(with3d));
  });
  byId("toggle-3d").onclick = () => {
    if (!view.with3d && view.isSoftware) {
      toast("3D will be slow here", "This computer draws without a graphics card.", "info");
    }
    app.set3d(!view.with3d);
  };
  byId("reset-view").onclick = () => view.resetZoom();
  byId("theme").onclick = switchTheme;
  byId("help").onclick = openHelp;
  byId("about").onclick = () => openAbout(store.state);
}

function factsOf({ shape, spacing }) {
  return `${shape.join(" x ")}, ${spacing.map((mm) => Number(mm.toFixed(2))).join(" x ")} mm`;
}

function drawTimes(app, scan) {
  const times = scan?.times ?? 1;
  byId("time-field").hidden = times < 2;
  const select = byId("time");
  if (times < 2) return;
  const names = Array.from({ length: times }, (_, n) => element("option", { value: n }, `${n + 1} of ${times}`));
  select.replaceChildren(...names);
  select.value = scan.time ?? 0;
  select.onchange = () => app.scans.open(app.scans.files, { time: Number(select.value), times });
}

function short(value) {
  return Math.abs(value) >= 10 ? value.toFixed(0) : Number(value.toPrecision(3)).toString();
}

function switchTheme() {
  const root = document.documentElement;
  const isDark = matchMedia("(prefers-color-scheme: dark)").matches;
  const present = root.dataset.theme ?? (isDark ? "dark" : "light");
  root.dataset.theme = present === "dark" ? "light" : "dark";
  try {
    localStorage.setItem("fastsam3d.theme", root.dataset.theme);
  } catch {
    // It then lasts until the page is closed.
  }
}

function openAbout({ server }) {
  const model = server?.model ?? {};
  const rows = [
    ["Model", model.name],
    ["Identity", model.id],
    ["Licence of the weights", model.license],
    ["Note", model.notice],
  ].filter(([, text]) => text);
  byId("about-facts").replaceChildren(
    ...rows.flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, String(text))]),
  );
  byId("about-dialog").showModal();
}

function wireRail(app) {
  const { store } = app;
  wireRadios(byId("tools"), (button) => store.set({ tool: button.dataset.tool }));
  wireRadios(byId("sign"), (button) => store.set({ isPositive: button.dataset.sign === "positive" }));
  store.watch(["tool", "isPositive"], ({ tool, isPositive }) => {
    check(byId("tools"), (button) => button.dataset.tool === tool);
    check(byId("sign"), (button) => (button.dataset.sign === "positive") === isPositive);
    byId("brush-row").hidden = tool !== "scribble";
  });
  byId("undo").onclick = () => app.undo();
  byId("redo").onclick = () => app.redo();
}

/** Radio buttons: one tab stop, arrow keys choose. */
function wireRadios(group, choose) {
  const buttons = [...group.querySelectorAll("[role=radio]")];
  for (const button of buttons) button.onclick = () => choose(button);
  group.addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    const at = buttons.indexOf(document.activeElement);
    const next = buttons[(at + by + buttons.length) % buttons.length];
    next.focus();
    choose(next);
  });
}

function check(group, isChecked) {
  for (const button of group.querySelectorAll("[role=radio]")) {
    const value = isChecked(button);
    button.setAttribute("aria-checked", String(value));
    button.tabIndex = value ? 0 : -1;
  }
}

function wireDisplay(app) {
  const { store, view } = app;
  const opacity = byId("opacity");
  opacity.oninput = () => {
    view.maskOpacity = opacity.value / 100;
    byId("opacity-value").textContent = `${opacity.value} %`;
  };
  const brush = byId("brush");
  brush.oninput = () => app.setBrush(Number(brush.value));
  store.watch(["brushMm"], ({ brushMm }) => {
    brush.value = brushMm;
    byId("brush-value").textContent = `${brushMm} mm`;
  });
  byId("outline").onchange = ({ target }) => {
    view.hasOutline = target.checked;
  };
  byId("smooth").onchange = ({ target }) => {
    view.isSmooth = target.checked;
  };
  byId("show-marks").onchange = ({ target }) => store.set({ showMarks: target.checked });
  store.watch(["showMarks"], ({ showMarks }) => {
    byId("show-marks").checked = showMarks;
  });
  byId("only-objects").onchange = ({ target }) => {
    view.contentOf3d = target.checked ? "objects" : "scan";
    view.draw();
  };
  byId("find-candidates").onclick = () => app.findCandidates();
  byId("add-object").onclick = () => app.addObject();
  byId("clear-prompts").onclick = () => app.removePrompts(store.activeObject.prompts.map((p) => p.id));
  for (const button of document.querySelectorAll("[data-export]")) {
    button.onclick = () => app.save(button.dataset.export);
  }
}

boot();
