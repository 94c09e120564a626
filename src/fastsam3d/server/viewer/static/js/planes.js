/** The three slice planes and how tiles are laid out on the stage. No drawing happens here. */

/** NiiVue's slice types. */
export const SLICE_TYPE = { axial: 0, coronal: 1, sagittal: 2, render: 4 };

export const PLANES = {
  axial: { title: "Axial", axis: 2, letters: ["R", "A", "L", "P"] },
  coronal: { title: "Coronal", axis: 1, letters: ["R", "S", "L", "I"] },
  sagittal: { title: "Sagittal", axis: 0, letters: ["A", "S", "P", "I"] },
};

const GAP = 3;

/**
 * Tiles of a layout, in CSS pixels of the stage.
 * @param {string} layout "grid", "focus" or "single"
 * @param {string} main the plane (or "render") that is largest
 * @param {boolean} with3d whether there is a 3-D tile
 * @param {number} width stage width
 * @param {number} height stage height
 * @returns {{plane: string, x: number, y: number, w: number, h: number}[]}
 */
export function layoutTiles(layout, main, with3d, width, height) {
  const planes = ["axial", "coronal", "sagittal", ...(with3d ? ["render"] : [])];
  if (layout === "single") return [tile(planes.includes(main) ? main : "axial", 0, 0, width, height)];
  if (layout === "grid" && with3d) {
    const w = (width - GAP) / 2;
    const h = (height - GAP) / 2;
    return planes.map((plane, n) => tile(plane, (n % 2) * (w + GAP), n > 1 ? h + GAP : 0, w, h));
  }
  const first = layout === "focus" && planes.includes(main) ? main : "axial";
  return focusTiles(
    first,
    planes.filter((plane) => plane !== first),
    width,
    height,
  );
}

function focusTiles(first, others, width, height) {
  const tall = height > width;
  const [along, across] = tall ? [height, width] : [width, height];
  const large = Math.round(along * 0.63);
  const small = along - large - GAP;
  const each = (across - GAP * (others.length - 1)) / others.length;
  const place = (a, c, la, lc) => (tall ? [c, a, lc, la] : [a, c, la, lc]);
  return [
    tile(first, ...place(0, 0, large, across)),
    ...others.map((plane, n) => tile(plane, ...place(large + GAP, n * (each + GAP), small, each))),
  ];
}

function tile(plane, x, y, w, h) {
  return { plane, x, y, w, h };
}
