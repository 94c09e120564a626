/** Keys, and the sheet that explains them; both come from one table. */

import { byId, element } from "./dom.js";
import { PLANES } from "./planes.js";
import { presetsFor } from "./presets.js";

const MOUSE = [
  ["Left click", "adds: this belongs to the object"],
  ["Right click", "removes: this does not"],
  ["Left drag", "moves the cross (or draws)"],
  ["Right drag", "window (with Click and Look)"],
  ["Wheel", "slices"],
  ["Ctrl + wheel", "zoom"],
  ["Shift + drag", "pan (or the middle button)"],
];
const TOUCH = [
  ["Tap", "adds (or removes, as chosen)"],
  ["Long press", "the opposite"],
  ["Up and down", "slices"],
  ["Two fingers", "zoom and pan"],
];

/** Sections of [keys to show, what it does, test of the event, action]. */
function table(app) {
  const { store, view } = app;
  const tool = (name) => () => store.set({ tool: name });
  const active = () => store.activeObject;
  const key = (letter) => (event) => event.key.toLowerCase() === letter && plain(event);
  return {
    Tools: [
      [["C"], "click", key("c"), tool("point")],
      [["B"], "box", key("b"), tool("box")],
      [["S"], "scribble", key("s"), tool("scribble")],
      [["L"], "lasso", key("l"), tool("lasso")],
      [["V"], "look around", key("v"), tool("navigate")],
      [["W"], "window by dragging", key("w"), tool("window")],
      [["X"], "add or remove", key("x"), () => store.set({ isPositive: !store.state.isPositive })],
      [["["], "smaller brush", key("["), () => app.setBrush(store.state.brushMm - 0.5)],
      [["]"], "larger brush", key("]"), () => app.setBrush(store.state.brushMm + 0.5)],
    ],
    Objects: [
      [["Ctrl", "Z"], "undo", (e) => command(e, "z") && !e.shiftKey, () => app.undo()],
      [["Ctrl", "Shift", "Z"], "redo", (e) => command(e, "z") && e.shiftKey, () => app.redo()],
      [["Ctrl", "Y"], "redo", (e) => command(e, "y"), () => app.redo()],
      [["N"], "new object", key("n"), () => app.addObject()],
      [["H"], "hide or show the object", key("h"), () => active() && app.setHidden(active().id, !store.state.hidden.has(active().id))],
      [["K"], "lock or unlock the object", key("k"), () => active() && app.setLocked(active().id, !active().locked)],
      [["A"], "alternatives", key("a"), () => app.findCandidates()],
      [["Alt", "1…9"], "choose a candidate", (e) => e.altKey && /^Digit[1-9]$/.test(e.code), (e) => app.chooseCandidate(Number(e.code[5]) - 1)],
      [["P"], "show or hide prompts", key("p"), () => store.set({ showMarks: !store.state.showMarks })],
      [["Ctrl", "S"], "save as NIfTI", (e) => command(e, "s"), () => active() && app.save("nii.gz")],
    ],
    View: [
      [["Q"], "all views", key("q"), () => app.setLayout("grid")],
      [["E"], "one large view", key("e"), () => app.setLayout("focus")],
      [["Z"], "fill with this view, or back", key("z"), () => app.toggleSingle(focusedPlane() ?? "axial")],
      [["D"], "3D on or off", key("d"), () => app.set3d(!view.with3d)],
      [["F"], "fit and centre", key("f"), () => view.resetZoom()],
      [["+", "−"], "zoom", (e) => /^[+=-]$/.test(e.key) && plain(e), (e) => view.zoom(e.key === "-" ? 0.8 : 1.25)],
      [["1…9"], "window presets", (e) => /^[1-9]$/.test(e.key) && plain(e), (e) => choosePreset(app, Number(e.key) - 1)],
    ],
    "In a focused view": [
      [["Arrows"], "move the cross (Shift: 10)", isArrow, (e) => moveCross(app, e)],
      [["Page Up", "Down"], "slices", (e) => /^Page(Up|Down)$/.test(e.key) && focusedPlane(), (e) => turnPage(app, e)],
      [["Enter"], "add at the cross", (e) => e.key === "Enter" && focusedPlane(), () => pointAtCross(app, true)],
      [["Backspace"], "remove at the cross", (e) => /^(Backspace|Delete)$/.test(e.key) && focusedPlane(), () => pointAtCross(app, false)],
    ],
    Page: [
      [["Ctrl", "O"], "open", (e) => command(e, "o"), () => byId("file-input").click()],
      [["?"], "this sheet", (e) => e.key === "?", openHelp],
    ],
  };
}

export function wireShortcuts(app) {
  const sections = table(app);
  const rows = Object.values(sections).flat();
  document.addEventListener("keydown", (event) => {
    if (isTyping(event) || document.querySelector("dialog[open]")) return;
    const row = rows.find(([, , matches]) => matches(event));
    if (!row) return;
    const needsScan = row[1] !== "open" && row[1] !== "this sheet";
    if (needsScan && app.state.phase !== "ready") return;
    event.preventDefault();
    row[3](event);
  });
  drawHelp(sections);
}

export function openHelp() {
  byId("help-dialog").showModal();
}

function drawHelp(sections) {
  const section = (title, rows) =>
    element("section", {}, element("h3", {}, title), element("dl", {}, ...rows.flat()));
  const keyRows = Object.entries(sections).map(([title, rows]) =>
    section(
      title,
      rows.map(([keys, text]) => [
        element("dt", {}, ...keys.map((k) => element("kbd", {}, k))),
        element("dd", {}, text),
      ]),
    ),
  );
  const words = (title, rows) =>
    section(title, rows.map(([name, text]) => [element("dt", {}, name), element("dd", {}, text)]));
  byId("help-columns").replaceChildren(words("Mouse", MOUSE), words("Touch", TOUCH), ...keyRows);
}

function plain(event) {
  return !event.ctrlKey && !event.metaKey && !event.altKey;
}

function command(event, letter) {
  return (event.ctrlKey || event.metaKey) && !event.altKey && event.key.toLowerCase() === letter;
}

function isTyping({ target, key, ctrlKey, metaKey }) {
  if (target.matches?.("input[type=range], input[type=checkbox], select")) {
    return /^(Arrow|Page|Home|End|Enter| |[a-z0-9]$)/i.test(key) && !ctrlKey && !metaKey;
  }
  return Boolean(target.matches?.("input, textarea"));
}

function focusedPlane() {
  const { activeElement } = document;
  return activeElement?.classList.contains("tile") ? activeElement.dataset.plane : null;
}

function isArrow(event) {
  return event.key.startsWith("Arrow") && plain(event) && Boolean(focusedPlane());
}

/** Right on the screen is the patient's left on axial and coronal slices. */
function moveCross({ view }, { key, shiftKey }) {
  const plane = focusedPlane();
  const by = shiftKey ? 10 : 1;
  const isLevel = key === "ArrowLeft" || key === "ArrowRight";
  const isForward = key === "ArrowRight" || key === "ArrowUp";
  if (!PLANES[plane]) {
    view.rotate(isLevel ? (isForward ? 20 : -20) : 0, isLevel ? 0 : isForward ? -20 : 20);
    return;
  }
  const [level, upright] = { axial: [0, 1], coronal: [0, 2], sagittal: [1, 2] }[plane];
  if (isLevel) view.step(level, isForward ? -by : by);
  else view.step(upright, isForward ? by : -by);
}

function turnPage({ view }, { key }) {
  const plane = focusedPlane();
  if (PLANES[plane]) view.setSlice(plane, view.sliceIndex(plane) + (key === "PageUp" ? 1 : -1));
}

function pointAtCross(app, isPositive) {
  if (PLANES[focusedPlane()]) app.addPoint(app.view.crosshair, isPositive, performance.now());
}

function choosePreset(app, index) {
  const preset = presetsFor(app.state.scan)[index];
  if (preset) app.scans.choosePreset(preset.id);
}
