/**
 * Masks as the server sends them: a JSON header and runs of voxels inside a box.
 *
 * Runs are LEB128 varints that alternate between background and object, background first, in C
 * order of i, j, k (k fastest). Everything is checked before memory is taken.
 */

const MAX_BOX_VOXELS = 2 ** 30;
const MAX_VARINT_BYTES = 5;

export class MaskError extends Error {}

/**
 * @param {Uint8Array} bytes varint run lengths
 * @param {number} size voxels of the box
 * @returns {Uint8Array} 0 or 1 per voxel
 */
export function decodeRuns(bytes, size) {
  if (!Number.isSafeInteger(size) || size < 0 || size > MAX_BOX_VOXELS) {
    throw new MaskError(`A mask box of ${size} voxels cannot be shown.`);
  }
  const voxels = new Uint8Array(size);
  let at = 0;
  let filled = 0;
  let value = 0;
  while (at < bytes.length) {
    let run = 0;
    let scale = 1;
    let byte;
    const first = at;
    do {
      if (at === bytes.length || at - first === MAX_VARINT_BYTES) {
        throw new MaskError("A mask arrived damaged (broken run length).");
      }
      byte = bytes[at];
      at += 1;
      run += (byte & 127) * scale;
      scale *= 128;
    } while (byte & 128);
    if (run > size - filled) throw new MaskError("A mask arrived damaged (too many voxels).");
    if (value) voxels.fill(1, filled, filled + run);
    filled += run;
    value ^= 1;
  }
  if (filled !== size) throw new MaskError("A mask arrived damaged (too few voxels).");
  return voxels;
}

/** Voxels inside a half-open box. */
export function boxSize(box) {
  return box.reduce((product, [low, high]) => product * Math.max(0, high - low), 1);
}

/**
 * @param {ArrayBuffer} buffer u32 LE header length, JSON header, payload
 * @returns {{header: object, payload: Uint8Array}}
 */
export function splitFrame(buffer) {
  if (buffer.byteLength < 4) throw new MaskError("A message from the server was cut short.");
  const length = new DataView(buffer).getUint32(0, true);
  if (length > buffer.byteLength - 4) throw new MaskError("A message from the server was cut short.");
  const text = new TextDecoder().decode(new Uint8Array(buffer, 4, length));
  return { header: JSON.parse(text), payload: new Uint8Array(buffer, 4 + length) };
}

/**
 * @param {ArrayBuffer} buffer one binary frame
 * @param {number[]} shape of the volume, to check the box against
 * @returns {{header: object, box: number[][], voxels: Uint8Array}}
 */
export function readMask(buffer, shape) {
  const { header, payload } = splitFrame(buffer);
  const { box } = header;
  const fits =
    Array.isArray(box) &&
    box.length === 3 &&
    box.every(
      ([low, high], axis) =>
        Number.isInteger(low) &&
        Number.isInteger(high) &&
        low >= 0 &&
        low <= high &&
        high <= shape[axis],
    );
  if (!fits) throw new MaskError("A mask arrived that does not fit this scan.");
  return { header, box, voxels: decodeRuns(payload, boxSize(box)) };
}
