/** Prompts and what is being drawn, as SVG over the images: crisp, and no work for NiiVue. */

import { byId, svgElement } from "./dom.js";
import { PLANES } from "./planes.js";

const NEARBY_SLICES = 2.5;
const CROSS_GAP = 14;
const POINT_RADIUS = 6;

export class Marks {
  constructor(store, view) {
    this.store = store;
    this.view = view;
    this.svg = byId("marks");
    this.sketch = null;
    view.addEventListener("drawn", () => this.draw());
    const fields = ["study", "active", "pending", "showMarks", "chosenPrompt", "hidden"];
    store.watch(fields, () => this.draw());
  }

  /** What is being drawn now: {plane, kind, points (stage pixels), isPositive, width} or null. */
  setSketch(sketch) {
    this.sketch = sketch;
    this.draw();
  }

  draw() {
    const nodes = [];
    if (this.view.grid) {
      for (const { plane, ...rect } of this.view.tiles) {
        if (PLANES[plane]) nodes.push(this.tile(plane, rect));
      }
      if (this.sketch) nodes.push(sketchNode(this.sketch));
    }
    this.svg.replaceChildren(...nodes);
  }

  tile(plane, { x, y, w, h }) {
    const clip = `clip-${plane}`;
    const rect = svgElement("rect", { x, y, width: w, height: h });
    return svgElement(
      "g",
      { "clip-path": `url(#${clip})` },
      svgElement("clipPath", { id: clip }, rect),
      ...this.cross(plane, { x, y, w, h }),
      ...this.prompts(plane),
    );
  }

  /** Thin lines in the colour of the plane they stand for, open in the middle. */
  cross(plane, { x, y, w, h }) {
    const [cx, cy] = this.view.project(plane, this.view.crosshair).map((v) => Math.round(v) + 0.5);
    const [upright, level] = { axial: ["sagittal", "coronal"], coronal: ["sagittal", "axial"], sagittal: ["coronal", "axial"] }[plane];
    const line = (name, x1, y1, x2, y2) => svgElement("line", { class: `cross ${name}`, x1, y1, x2, y2 });
    return [
      line(upright, cx, y, cx, cy - CROSS_GAP),
      line(upright, cx, cy + CROSS_GAP, cx, y + h),
      line(level, x, cy, cx - CROSS_GAP, cy),
      line(level, cx + CROSS_GAP, cy, x + w, cy),
    ];
  }

  prompts(plane) {
    const { state, activeObject } = this.store;
    if (!state.showMarks) return [];
    const kept = (activeObject?.prompts ?? []).map((prompt) => ({ prompt, id: prompt.id }));
    const sent = state.pending.map(({ prompt }) => ({ prompt, isPending: true }));
    return [...kept, ...sent].flatMap((item) => this.prompt(plane, item));
  }

  prompt(plane, { prompt, id, isPending }) {
    const vertices = verticesOf(prompt);
    if (prompt.frame !== "voxel" || !vertices.length) return [];
    const { grid } = this.view;
    const across = this.view.fileAxisAcross(plane);
    const slice = this.view.voxelOf(this.view.crosshair)[across];
    const distance = Math.abs(vertices[0][across] - Math.round(slice));
    const isFlat = prompt.type === "point" || prompt.axis === across;
    if (!isFlat || distance > NEARBY_SLICES) return [];
    const points = vertices.map((ijk) => this.view.project(plane, this.view.fracOf(ijk)));
    const classes = [
      "mark",
      prompt.positive === false ? "mark-negative" : "mark-positive",
      distance > 0.5 ? "away" : "",
      isPending ? "pending" : "",
      id !== undefined && this.store.state.chosenPrompt === id ? "chosen" : "",
    ];
    const width = grid && prompt.radius_mm ? 2 * prompt.radius_mm * this.view.pixelsPerMm(plane) : 3;
    return [svgElement("g", { class: classes.filter(Boolean).join(" ") }, ...shapes(prompt, points, width))];
  }
}

/** Positions that say where a prompt is, in its own frame. */
export function verticesOf(prompt) {
  if (prompt.type === "point") return [prompt.at];
  if (prompt.type === "scribble") return prompt.path;
  if (prompt.type === "lasso") return prompt.outline;
  if (prompt.type === "slice_box") return boxCorners(prompt);
  return [];
}

/** Outer corners of a half-open voxel box on its slice. */
function boxCorners({ start, stop, axis }) {
  const [a, b] = [0, 1, 2].filter((n) => n !== axis);
  return [[start, start], [stop, start], [stop, stop], [start, stop]].map(([fromA, fromB]) => {
    const corner = [...start];
    corner[a] = fromA[a] - 0.5;
    corner[b] = fromB[b] - 0.5;
    return corner;
  });
}

function shapes(prompt, points, width) {
  if (prompt.type === "point") return pointShapes(points[0], prompt.positive);
  if (prompt.type === "scribble") return [traceNode(points, width)];
  return [svgElement("polygon", { class: "outline", points: listOf(points) })];
}

function pointShapes([x, y], isPositive) {
  const r = POINT_RADIUS;
  const d = isPositive ? `M${x - 3} ${y}h6M${x} ${y - 3}v6` : `M${x - 3} ${y}h6`;
  return [svgElement("circle", { cx: x, cy: y, r }), svgElement("path", { class: "glyph", d })];
}

function traceNode(points, width) {
  const line = points.length > 1 ? points : [points[0], points[0]];
  return svgElement("polyline", { class: "trace", points: listOf(line), "stroke-width": Math.max(2, width) });
}

function sketchNode({ kind, points, isPositive, width }) {
  const node =
    kind === "scribble"
      ? traceNode(points, width)
      : svgElement("polygon", { class: "outline", points: listOf(points) });
  return svgElement("g", { class: `mark ${isPositive ? "mark-positive" : "mark-negative"}` }, node);
}

function listOf(points) {
  return points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");
}
