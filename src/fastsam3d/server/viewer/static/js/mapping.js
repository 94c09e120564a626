/**
 * The file's voxel grid and the grid that NiiVue shows.
 *
 * NiiVue reorders every volume so that its axes run right, anterior, superior ("RAS grid", i.e.
 * x fastest). The server speaks the file's own array order (i, j, k). Both meet here and nowhere
 * else, by whole-number permutation and reflection, so nothing is ever interpolated.
 */

/**
 * @typedef {object} GridMapping
 * @property {number[]} fileShape voxels along i, j, k
 * @property {number[]} rasShape voxels along x, y, z of the RAS grid
 * @property {number[]} fileAxis for x, y, z: the file axis it follows
 * @property {boolean[]} flipped for x, y, z: whether it runs against that axis
 */

/**
 * @param {number[]} permRAS NiiVue's permutation, such as [-1, -2, 3]: signed file axes from 1
 * @param {number[]} fileShape voxels along i, j, k
 * @returns {GridMapping}
 */
export function gridMapping(permRAS, fileShape) {
  const fileAxis = permRAS.map((axis) => Math.abs(axis) - 1);
  const flipped = permRAS.map((axis) => axis < 0);
  return { fileShape: [...fileShape], rasShape: fileAxis.map((a) => fileShape[a]), fileAxis, flipped };
}

/** RAS-grid voxel (may be fractional) of a file voxel. */
export function fileToRas(grid, ijk) {
  return grid.fileAxis.map((a, p) => (grid.flipped[p] ? grid.fileShape[a] - 1 - ijk[a] : ijk[a]));
}

/** File voxel (may be fractional) of a RAS-grid voxel. */
export function rasToFile(grid, xyz) {
  const ijk = [0, 0, 0];
  grid.fileAxis.forEach((a, p) => {
    ijk[a] = grid.flipped[p] ? grid.fileShape[a] - 1 - xyz[p] : xyz[p];
  });
  return ijk;
}

/** RAS-grid voxel of a texture coordinate (0 to 1 over the whole grid), clamped to the grid. */
export function fracToRas(grid, frac) {
  return grid.rasShape.map((n, p) => Math.min(n - 0.5, Math.max(-0.5, frac[p] * n - 0.5)));
}

/** Texture coordinate of a RAS-grid voxel. */
export function rasToFrac(grid, xyz) {
  return grid.rasShape.map((n, p) => (xyz[p] + 0.5) / n);
}

/** Nearest voxel inside the grid. */
export function nearestVoxel(shape, position) {
  return shape.map((n, axis) => Math.min(n - 1, Math.max(0, Math.floor(position[axis] + 0.5))));
}

/** Position in mm (RAS) of a file voxel; `affine` is row-major 4x4. */
export function voxelToWorld(affine, ijk) {
  return [0, 1, 2].map(
    (r) => affine[r][0] * ijk[0] + affine[r][1] * ijk[1] + affine[r][2] * ijk[2] + affine[r][3],
  );
}

/** Whether two affines put every corner of the grid within `tolerance` voxels of each other. */
export function sameGrid(affineA, affineB, shape, tolerance = 0.25) {
  const step = Math.min(
    ...[0, 1, 2].map((c) => Math.hypot(affineB[0][c], affineB[1][c], affineB[2][c])),
  );
  for (let corner = 0; corner < 8; corner += 1) {
    const ijk = shape.map((n, axis) => ((corner >> axis) & 1) * (n - 1));
    const a = voxelToWorld(affineA, ijk);
    const b = voxelToWorld(affineB, ijk);
    if (!(Math.hypot(a[0] - b[0], a[1] - b[1], a[2] - b[2]) <= tolerance * step)) return false;
  }
  return true;
}

/**
 * Start and steps that turn file indices i, j, k into the linear index of the RAS grid.
 * @returns {{start: number, step: number[]}}
 */
export function linearSteps(grid) {
  const stride = [1, grid.rasShape[0], grid.rasShape[0] * grid.rasShape[1]];
  const step = [0, 0, 0];
  let start = 0;
  grid.fileAxis.forEach((a, p) => {
    step[a] = grid.flipped[p] ? -stride[p] : stride[p];
    if (grid.flipped[p]) start += (grid.fileShape[a] - 1) * stride[p];
  });
  return { start, step };
}

/** The box in RAS-grid voxels that a half-open file box covers. */
export function rasBox(grid, box) {
  return grid.fileAxis.map((a, p) => {
    const [low, high] = box[a];
    return grid.flipped[p] ? [grid.fileShape[a] - high, grid.fileShape[a] - low] : [low, high];
  });
}

/** Overlap of two half-open boxes, or null. */
export function intersection(a, b) {
  const box = a.map(([low, high], axis) => [Math.max(low, b[axis][0]), Math.min(high, b[axis][1])]);
  return box.every(([low, high]) => low < high) ? box : null;
}

/** Smallest half-open box around two (either may be null). */
export function hull(a, b) {
  if (!a || !b) return a ?? b;
  return a.map(([low, high], axis) => [Math.min(low, b[axis][0]), Math.max(high, b[axis][1])]);
}

/**
 * Write `value` into RAS-ordered labels wherever a mask is set, within `region`.
 * @param {Uint8Array} labels RAS grid, x fastest
 * @param {GridMapping} grid
 * @param {{box: number[][], voxels: Uint8Array}} mask half-open file box; C order, k fastest
 * @param {number} value
 * @param {number[][]} region half-open file box that may be written
 */
export function pasteMask(labels, grid, mask, value, region) {
  const inside = intersection(mask.box, region);
  if (!inside) return;
  const { start, step } = linearSteps(grid);
  const [boxI, boxJ, boxK] = mask.box;
  const rowsJ = boxJ[1] - boxJ[0];
  const rowK = boxK[1] - boxK[0];
  for (let i = inside[0][0]; i < inside[0][1]; i += 1) {
    for (let j = inside[1][0]; j < inside[1][1]; j += 1) {
      let from = ((i - boxI[0]) * rowsJ + (j - boxJ[0])) * rowK + (inside[2][0] - boxK[0]);
      let to = start + i * step[0] + j * step[1] + inside[2][0] * step[2];
      for (let k = inside[2][0]; k < inside[2][1]; k += 1, from += 1, to += step[2]) {
        if (mask.voxels[from]) labels[to] = value;
      }
    }
  }
}

/** Set every label of a half-open RAS box to 0. */
export function clearRasBox(labels, grid, box) {
  const [nx, ny] = grid.rasShape;
  const width = box[0][1] - box[0][0];
  for (let z = box[2][0]; z < box[2][1]; z += 1) {
    for (let y = box[1][0]; y < box[1][1]; y += 1) {
      const at = box[0][0] + nx * (y + ny * z);
      labels.fill(0, at, at + width);
    }
  }
}
