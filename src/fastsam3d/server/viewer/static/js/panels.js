/** The right-hand panel: objects, candidates, prompts, measurements; and the status line. */

import { byId, element, icon, iconButton, svgElement } from "./dom.js";
import { verticesOf } from "./marks.js";
import { describePrompt } from "./prompts.js";
import { voxelToWorld } from "./mapping.js";
import { looksLikeCt } from "./presets.js";

export function buildPanels(app) {
  const { store } = app;
  store.watch(["study", "active", "hidden"], (state) => drawObjects(app, state));
  store.watch(["study", "active"], () => drawPrompts(app));
  store.watch(["candidates", "study", "active"], (state) => drawCandidates(app, state));
  store.watch(["statistics", "active", "study"], (state) => drawStatistics(store, state));
  store.watch(["connection", "latency", "server"], drawStatus);
  store.watch(["study"], ({ study }) => {
    byId("undo").disabled = !study.can_undo;
    byId("redo").disabled = !study.can_redo;
    const isEmpty = !study.objects.some((o) => o.prompts.length);
    for (const button of document.querySelectorAll("[data-export]")) button.disabled = isEmpty;
  });
}

// Objects

function drawObjects(app, { study, active, hidden }) {
  const list = byId("objects");
  const typing = document.activeElement?.closest?.("#objects input");
  if (typing && list.contains(typing) && sameObjects(list, study)) {
    // A row in which someone types is not torn down below their hands.
    return;
  }
  const focus = focusKey(list);
  list.replaceChildren(...study.objects.map((o) => objectRow(app, o, o.id === active, hidden.has(o.id))));
  if (focus) list.querySelector(`[data-key="${focus}"]`)?.focus();
}

function sameObjects(list, study) {
  const ids = [...list.children].map((row) => Number(row.dataset.id));
  return ids.join() === study.objects.map((o) => o.id).join();
}

function focusKey(list) {
  const { activeElement } = document;
  return list.contains(activeElement) ? activeElement.dataset.key : null;
}

function objectRow(app, object, isActive, isHidden) {
  const { id, name, locked } = object;
  const hideLabel = isHidden ? `Show ${name}` : `Hide ${name}`;
  const lockLabel = locked ? `Unlock ${name}` : `Lock ${name}: nothing can change it`;
  return element(
    "li",
    {
      class: `object${isHidden ? " is-hidden" : ""}`,
      "data-id": id,
      "aria-current": isActive ? "true" : false,
      onclick: (event) => {
        if (!event.target.closest("button, label") && !isActive) app.activate(id);
      },
    },
    swatch(app, object),
    element("div", { class: "name" }, nameInput(app, object, isActive), element("span", {}, volumeText(object))),
    iconButton(isHidden ? "eye-off" : "eye", hideLabel, () => app.setHidden(id, !isHidden), {
      "aria-pressed": String(isHidden),
      "data-key": `eye-${id}`,
    }),
    iconButton(locked ? "lock" : "unlock", lockLabel, () => app.setLocked(id, !locked), {
      "aria-pressed": String(locked),
      "data-key": `lock-${id}`,
    }),
    iconButton("trash", `Delete ${name}`, () => app.deleteObject(id), {
      "data-key": `delete-${id}`,
      disabled: locked,
    }),
  );
}

function volumeText({ volume_ml: ml, prompts, locked }) {
  if (!prompts.length && !ml) return "empty, click on the images";
  return `${millilitres(ml)}${locked ? ", locked" : ""}`;
}

function swatch(app, { id, colour, name }) {
  const input = element("input", {
    type: "color",
    value: hex(colour),
    "aria-label": `Colour of ${name}`,
    "data-key": `colour-${id}`,
    onchange: () => app.describe(id, { colour: fromHex(input.value) }),
  });
  const dot = svgElement(
    "svg",
    { viewBox: "0 0 20 20", "aria-hidden": "true" },
    svgElement("circle", { cx: 10, cy: 10, r: 8, fill: hex(colour) }),
  );
  return element("label", { class: "swatch", title: "Change the colour" }, dot, input);
}

function nameInput(app, { id, name }, isActive) {
  const input = element("input", {
    value: name,
    "aria-label": isActive ? "Name of the active object" : `Name; press Enter to work on ${name}`,
    "data-key": `name-${id}`,
    maxlength: 80,
    spellcheck: "false",
    onfocus: () => app.activate(id),
    onchange: () => {
      const next = input.value.trim();
      if (next && next !== name) app.describe(id, { name: next });
      else input.value = name;
    },
    onkeydown: (event) => {
      if (event.key === "Enter" || event.key === "Escape") {
        if (event.key === "Escape") input.value = name;
        input.blur();
      }
      event.stopPropagation();
    },
  });
  return input;
}

// Prompts

function drawPrompts(app) {
  const object = app.store.activeObject;
  const prompts = object?.prompts ?? [];
  byId("prompts-section").hidden = !prompts.length;
  byId("prompts-count").textContent = prompts.length;
  byId("clear-prompts").hidden = Boolean(object?.locked);
  const list = byId("prompts");
  const focus = focusKey(list);
  list.replaceChildren(...prompts.map((p) => promptRow(app, p, object.locked)));
  if (focus) list.querySelector(`[data-key="${focus}"]`)?.focus();
}

function promptRow(app, prompt, isLocked) {
  const { isPositive, name, icon: iconName } = describePrompt(prompt);
  const choose = (id) => () => app.store.set({ chosenPrompt: id });
  const [first] = verticesOf(prompt);
  const place = first && prompt.frame === "voxel" ? first.map(Math.round).join(", ") : "";
  const go = element(
    "button",
    {
      class: "go",
      title: "Go to it",
      "data-key": `go-${prompt.id}`,
      onclick: () => goTo(app, prompt),
      onfocus: choose(prompt.id),
      onblur: choose(null),
    },
    icon(iconName ?? "plus"),
    name,
    element("span", { class: "where" }, place),
  );
  const remove = iconButton("close", `Remove ${name} ${prompt.id}`, () => app.removePrompts([prompt.id]), {
    class: "remove",
    "data-key": `remove-${prompt.id}`,
    disabled: isLocked,
  });
  return element(
    "li",
    {
      class: `prompt ${isPositive ? "positive" : "negative"}`,
      onmouseenter: choose(prompt.id),
      onmouseleave: choose(null),
    },
    go,
    remove,
  );
}

function goTo(app, prompt) {
  const vertices = verticesOf(prompt);
  if (!vertices.length || prompt.frame !== "voxel") return;
  const middle = [0, 1, 2].map((n) => {
    const values = vertices.map((v) => v[n]);
    return (Math.min(...values) + Math.max(...values)) / 2;
  });
  app.view.crosshair = app.view.fracOf(middle);
}

// Candidates

const CANDIDATE_NAMES = { part: "Part", answer: "Answer", whole: "Whole" };

function drawCandidates(app, { candidates }) {
  const object = app.store.activeObject;
  byId("candidates-section").hidden = !object?.prompts.length || object.locked;
  byId("find-candidates").hidden = Boolean(candidates);
  byId("candidates").hidden = !candidates;
  if (!candidates) return;
  byId("candidates").replaceChildren(
    ...candidates.items.map((item, n) =>
      element(
        "button",
        {
          role: "radio",
          "aria-checked": String(n === candidates.chosen),
          title: `Choose this one (Alt+${n + 1})`,
          onclick: () => app.chooseCandidate(n),
        },
        CANDIDATE_NAMES[item.kind] ?? `${n + 1}`,
        element("small", {}, item.volume_ml === undefined ? "" : millilitres(item.volume_ml)),
      ),
    ),
  );
}

// Measurements

function drawStatistics(store, { statistics, active, study, scan }) {
  const object = study.objects.find((o) => o.id === active);
  byId("statistics-section").hidden = !object?.prompts.length;
  const values = statistics?.object === active ? statistics.values : null;
  const rows = [];
  const row = (name, text) => rows.push(element("dt", {}, name), element("dd", {}, text));
  rows.push(element("dd", { class: "main" }, millilitres(values?.volume_ml ?? object?.volume_ml ?? 0)));
  if (values?.axial) {
    row("Longest axial x across", `${mm(values.axial.long.mm)} x ${mm(values.axial.short_mm)} mm`);
  }
  if (values?.longest) row("Longest in 3D", `${mm(values.longest.mm)} mm`);
  if (values?.intensity) {
    const unit = scan && looksLikeCt(scan) ? " HU" : "";
    const { mean, sd, minimum, maximum } = values.intensity;
    row("Mean ± SD", `${number(mean)} ± ${number(sd)}${unit}`);
    row("Range", `${number(minimum)} to ${number(maximum)}${unit}`);
  }
  if (values) row("Voxels", values.num_voxels.toLocaleString("en"));
  byId("statistics").replaceChildren(...rows);
}

// Status

const CONNECTIONS = { connecting: "Connecting", online: "Connected", offline: "Not connected" };

function drawStatus({ connection, latency, server }) {
  byId("connection").dataset.state = connection;
  byId("connection-text").textContent = CONNECTIONS[connection];
  const shown = latency ? `Click ${Math.round(latency.shown)} ms` : "";
  const part = latency?.server ? ` (server ${Math.round(latency.server)})` : "";
  byId("latency").textContent = shown + part;
  const model = server?.model;
  if (model) byId("model-name").textContent = `${model.name}, ${model.license ?? "see licence"}`;
}

/** Voxel, position and intensity under the pointer. */
export function drawReadout(app, frac) {
  const { scan } = app.state;
  if (!frac || !scan?.affine) {
    byId("readout").textContent = "";
    return;
  }
  const ijk = app.view.voxelOf(frac).map((v, n) => Math.min(scan.shape[n] - 1, Math.max(0, Math.round(v))));
  const world = voxelToWorld(scan.affine, ijk).map((v) => v.toFixed(1));
  const unit = looksLikeCt(scan) ? " HU" : "";
  byId("readout").textContent =
    `Voxel ${ijk.join(", ")}    RAS ${world.join(", ")} mm    ${number(app.view.valueAt(frac))}${unit}`;
}

// Words and numbers

export function millilitres(ml) {
  if (ml >= 100) return `${ml.toFixed(0)} ml`;
  return `${ml.toFixed(ml >= 10 ? 1 : 2)} ml`;
}

function mm(value) {
  return value.toFixed(1);
}

function number(value) {
  if (!Number.isFinite(value)) return "";
  const digits = Math.abs(value) >= 100 || Number.isInteger(value) ? 0 : Math.abs(value) >= 1 ? 1 : 3;
  return value.toFixed(digits);
}

function hex(colour) {
  return `#${colour.map((v) => v.toString(16).padStart(2, "0")).join("")}`;
}

function fromHex(text) {
  return [1, 3, 5].map((at) => Number.parseInt(text.slice(at, at + 2), 16));
}
