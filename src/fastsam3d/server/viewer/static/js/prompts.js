/** Prompts as the server takes them (`fastsam3d.prompts.plain`), in voxels of the file. */

import { nearestVoxel } from "./mapping.js";

/** A click at a fractional voxel, which is the voxel it lies in. */
export function pointPrompt(shape, ijk, isPositive) {
  return { type: "point", frame: "voxel", at: nearestVoxel(shape, ijk), positive: isPositive };
}

/**
 * What was drawn on one slice.
 * @param {"box" | "scribble" | "lasso"} kind
 * @param {number[][]} vertices fractional voxels; of a box, two opposite corners
 * @param {{shape: number[], axis: number, isPositive: boolean, radiusMm: number}} options `axis` is
 *   the array axis across the slice
 */
export function drawnPrompt(kind, vertices, { shape, axis, isPositive, radiusMm }) {
  const slice = nearestVoxel(shape, vertices[0])[axis];
  const path = vertices.map((ijk) => ijk.map((value, n) => (n === axis ? slice : rounded(value))));
  const common = { frame: "voxel", axis };
  if (kind === "scribble") {
    return { type: "scribble", ...common, path, positive: isPositive, radius_mm: radiusMm };
  }
  if (kind === "lasso") return { type: "lasso", ...common, outline: path, positive: isPositive };
  return { type: "slice_box", ...common, ...sliceBox(vertices, shape, axis, slice) };
}

/** The half-open box of whole voxels that two corners touch. */
function sliceBox(corners, shape, axis, slice) {
  const voxels = corners.map((ijk) => nearestVoxel(shape, ijk));
  const bound = (pick, add) =>
    [0, 1, 2].map((n) => (n === axis ? slice : pick(...voxels.map((v) => v[n]))) + add);
  return { start: bound(Math.min, 0), stop: bound(Math.max, 1) };
}

function rounded(value) {
  return Math.round(value * 100) / 100;
}

/** A prompt in words, for the list. */
export function describePrompt(prompt) {
  const names = { point: "Click", box: "Box in 3D", slice_box: "Box", scribble: "Scribble", lasso: "Lasso", mask: "Chosen mask" };
  const icons = { point: null, box: "box", slice_box: "box", scribble: "scribble", lasso: "lasso", mask: "cube" };
  const isPositive = prompt.positive !== false;
  const name = names[prompt.type] ?? prompt.type;
  return {
    isPositive,
    name: isPositive ? name : `${name}, not this`,
    icon: icons[prompt.type] ?? (isPositive ? "plus" : "minus"),
  };
}
