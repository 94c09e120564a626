/**
 * NiiVue behind a small interface: one volume, one label volume of object slots, tiles.
 *
 * NiiVue's own mouse and keyboard handling is off; every interaction comes through `tools.js`.
 * Positions cross this border as texture coordinates ("frac", 0 to 1 over the grid) and leave it
 * as voxels of the file through `mapping.js`.
 */

import {
  clearRasBox,
  fracToRas,
  gridMapping,
  hull,
  nearestVoxel,
  pasteMask,
  rasBox,
  rasToFile,
  rasToFrac,
  fileToRas,
} from "./mapping.js";
import { layoutTiles, PLANES, SLICE_TYPE } from "./planes.js";

const { Niivue, NVImage } = globalThis.niivue;
const SOFTWARE_RENDERER = /swiftshader|llvmpipe|software|basic render/i;
const MAX_SLOTS = 255;
const FADED_SCAN_OPACITY = 0.06;
const LATE_DRAW_MS = 1000;

export class View extends EventTarget {
  constructor(stage, canvas) {
    super();
    this.stage = stage;
    this.canvas = canvas;
    this.grid = null;
    this.labels = null;
    this.layout = "grid";
    this.main = "axial";
    this.with3d = true;
    this.tiles = [];
    this.masks = new Map();
    this.colours = "";
    this.contentOf3d = "scan";
    this.frame = 0;
    this.lateDraw = 0;
  }

  /** Start WebGL. @throws {Error} when the browser has no WebGL 2. */
  async start() {
    this.nv = new Niivue({
      interactive: false,
      dragAndDropEnabled: false,
      isRadiologicalConvention: true,
      sagittalNoseLeft: true,
      isOrientationTextVisible: false,
      crosshairWidth: 0,
      show3Dcrosshair: false,
      loadingText: "",
      logLevel: "error",
      backColor: [0, 0, 0, 1],
    });
    await this.nv.attachToCanvas(this.canvas);
    this.isSoftware = SOFTWARE_RENDERER.test(rendererName(this.nv.gl));
    // Volume rendering in software takes seconds a frame: offered, not imposed.
    this.with3d = !this.isSoftware;
    this.nv.drawOpacity = 0.45;
    this.nv.drawRimOpacity = 1;
    this.nv.renderDrawAmbientOcclusion = 0.3;
    this.fadeScanIn3d();
    new ResizeObserver(() => this.relayout()).observe(this.stage);
    this.relayout();
  }

  /** In 3-D the scan hides the objects; so it can be faded there, and there alone. */
  fadeScanIn3d() {
    const { nv } = this;
    const drawImage3D = nv.drawImage3D.bind(nv);
    nv.drawImage3D = (...parameters) => {
      const { drawOpacity, renderShader, gl } = nv;
      const isFaded = this.contentOf3d === "objects";
      renderShader.use(gl);
      gl.uniform1f(renderShader.uniforms.backOpacity, isFaded ? FADED_SCAN_OPACITY : 1);
      if (isFaded) nv.drawOpacity = 1;
      try {
        return drawImage3D(...parameters);
      } finally {
        nv.drawOpacity = drawOpacity;
      }
    };
  }

  get volume() {
    return this.nv.volumes[0] ?? null;
  }

  /**
   * Show a file that the browser can read; the former volume and all masks go.
   * @param {File} file
   * @param {number} time of a series, which volume
   */
  async show(file, time = 0) {
    const image = await NVImage.loadFromFile({ file, name: file.name });
    const largest = Math.max(...image.dimsRAS.slice(1, 4));
    if (largest > this.nv.uiData.max3D) {
      throw new Error(
        `This scan is ${largest} voxels long; this computer's graphics show ${this.nv.uiData.max3D}.`,
      );
    }
    this.clear();
    this.nv.addVolume(image);
    if (time) this.nv.setFrame4D(image.id, time);
    this.grid = gridMapping(image.permRAS, image.hdr.dims.slice(1, 4));
    this.startLabels();
    this.nv.scene.crosshairPos = [0.5, 0.5, 0.5];
    this.resetZoom();
  }

  /** Take the volume and all masks away. */
  clear() {
    for (const volume of [...this.nv.volumes]) this.nv.removeVolume(volume);
    if (this.labels) this.nv.closeDrawing();
    this.grid = null;
    this.labels = null;
    this.masks.clear();
    this.colours = "";
    this.draw();
  }

  /** File voxel to mm as NiiVue read it, row-major 4x4. */
  get affine() {
    return this.volume.hdr.affine;
  }

  // Drawing

  /** Redraw on the next frame, once for however many calls. */
  draw() {
    clearTimeout(this.lateDraw);
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.nv.drawScene();
      this.dispatchEvent(new Event("drawn"));
    });
  }

  setLayout(layout, main = this.main) {
    this.layout = layout;
    this.main = main;
    this.relayout();
  }

  set3d(isShown) {
    this.with3d = isShown;
    if (!isShown && this.main === "render") this.setLayout("grid", "axial");
    else this.relayout();
  }

  relayout() {
    const { clientWidth: width, clientHeight: height } = this.stage;
    if (!width || !height) return;
    this.tiles = layoutTiles(this.layout, this.main, this.with3d, width, height);
    this.nv.customLayout = this.tiles.map(({ plane, x, y, w, h }) => ({
      sliceType: SLICE_TYPE[plane],
      position: [x / width, y / height, w / width, h / height],
    }));
    this.nv.resizeListener();
    this.dispatchEvent(new Event("layout"));
    this.draw();
  }

  // Positions

  /** The tile under a stage position in CSS pixels, or null. */
  tileAt(x, y) {
    return (
      this.tiles.find((t) => x >= t.x && x < t.x + t.w && y >= t.y && y < t.y + t.h) ?? null
    );
  }

  screenSlice(plane) {
    const index = this.nv.screenSlices.findIndex((s) => s.axCorSag === SLICE_TYPE[plane]);
    return index < 0 ? null : { index, slice: this.nv.screenSlices[index] };
  }

  /**
   * Texture coordinate under a stage position of one plane; null outside of the image.
   * @param {boolean} clamp instead of null, the nearest position inside
   */
  fracAt(plane, x, y, clamp = false) {
    const found = this.screenSlice(plane);
    if (!found || !this.grid) return null;
    const { dpr } = this.nv.uiData;
    const [left, top, width, height] = found.slice.leftTopWidthHeight;
    const [low, high] = [Math.min(left, left + width), Math.max(left, left + width)];
    let [canvasX, canvasY] = [x * dpr, y * dpr];
    if (clamp) {
      canvasX = Math.min(high - 0.01, Math.max(low + 0.01, canvasX));
      canvasY = Math.min(top + height - 0.01, Math.max(top + 0.01, canvasY));
    }
    const frac = Array.from(
      this.nv.screenXY2TextureFrac(canvasX, canvasY, found.index, !clamp),
    );
    if (!clamp && frac[0] < 0) return null;
    frac[PLANES[plane].axis] = this.nv.scene.crosshairPos[PLANES[plane].axis];
    return frac.map((value) => Math.min(1, Math.max(0, value)));
  }

  /** Stage position (CSS pixels) of a texture coordinate on one plane's tile; null if not shown. */
  project(plane, frac) {
    const found = this.screenSlice(plane);
    if (!found) return null;
    const { slice } = found;
    const mm = this.nv.frac2mm(frac);
    const [a, b] = { axial: [0, 1], coronal: [0, 2], sagittal: [1, 2] }[plane];
    let across = (mm[a] - slice.leftTopMM[0]) / slice.fovMM[0];
    const up = (mm[b] - slice.leftTopMM[1]) / slice.fovMM[1];
    let [left, top, width, height] = slice.leftTopWidthHeight;
    if (width < 0) {
      left += width;
      width = -width;
      across = 1 - across;
    }
    const { dpr } = this.nv.uiData;
    return [(left + across * width) / dpr, (top + (1 - up) * height) / dpr];
  }

  /** File voxel (fractional) of a texture coordinate. */
  voxelOf(frac) {
    return rasToFile(this.grid, fracToRas(this.grid, frac));
  }

  /** Texture coordinate of a file voxel. */
  fracOf(ijk) {
    return rasToFrac(this.grid, fileToRas(this.grid, ijk));
  }

  /** The file's array axis across the slices of a plane. */
  fileAxisAcross(plane) {
    return this.grid.fileAxis[PLANES[plane].axis];
  }

  /** Intensity at a texture coordinate, in the file's unit. */
  valueAt(frac) {
    const [x, y, z] = nearestVoxel(this.grid.rasShape, fracToRas(this.grid, frac));
    return this.volume.getValue(x, y, z, this.volume.frame4D ?? 0);
  }

  /** CSS pixels per millimetre on a plane. */
  pixelsPerMm(plane) {
    const found = this.screenSlice(plane);
    if (!found) return 1;
    const { leftTopWidthHeight, fovMM } = found.slice;
    return Math.abs(leftTopWidthHeight[2]) / Math.abs(fovMM[0]) / this.nv.uiData.dpr;
  }

  // Navigation

  get crosshair() {
    return Array.from(this.nv.scene.crosshairPos);
  }

  set crosshair(frac) {
    this.placeCrosshair(frac);
    this.draw();
  }

  /**
   * Go to where a prompt was given. A software renderer would take the processor from the model at
   * the worst moment, so there the slices follow with the answer, which is drawn anyway.
   */
  aim(frac) {
    this.placeCrosshair(frac);
    if (!this.isSoftware) this.draw();
    else if (!this.frame) {
      clearTimeout(this.lateDraw);
      this.lateDraw = setTimeout(() => this.draw(), LATE_DRAW_MS);
    }
  }

  placeCrosshair(frac) {
    this.nv.scene.crosshairPos = frac.map((value) => Math.min(1, Math.max(0, value)));
  }

  sliceCount(plane) {
    return this.grid ? this.grid.rasShape[PLANES[plane].axis] : 0;
  }

  sliceIndex(plane) {
    const { axis } = PLANES[plane];
    const count = this.sliceCount(plane);
    return Math.min(count - 1, Math.max(0, Math.floor(this.nv.scene.crosshairPos[axis] * count)));
  }

  setSlice(plane, index) {
    const { axis } = PLANES[plane];
    const count = this.sliceCount(plane);
    const frac = this.crosshair;
    frac[axis] = (Math.min(count - 1, Math.max(0, index)) + 0.5) / count;
    this.crosshair = frac;
  }

  /** Move the crosshair by voxels of the RAS grid. */
  step(axis, by) {
    const frac = this.crosshair;
    const n = this.grid.rasShape[axis];
    const index = Math.min(n - 1, Math.max(0, Math.floor(frac[axis] * n) + by));
    frac[axis] = (index + 0.5) / n;
    this.crosshair = frac;
  }

  resetZoom() {
    this.nv.scene.pan2Dxyzmm = [0, 0, 0, 1];
    this.nv.scene.renderAzimuth = 120;
    this.nv.scene.renderElevation = 12;
    this.nv.scene.volScaleMultiplier = 1;
    this.draw();
  }

  /** Zoom the slices by a factor, keeping what is at `frac` in its place. */
  zoom(factor, frac = this.crosshair) {
    const pan = this.nv.scene.pan2Dxyzmm;
    const zoom = Math.min(20, Math.max(0.5, pan[3] * factor));
    const mm = this.nv.frac2mm(frac);
    const change = pan[3] - zoom;
    this.nv.scene.pan2Dxyzmm = [0, 1, 2].map((n) => pan[n] + change * mm[n]).concat(zoom);
    this.draw();
  }

  /** Pan so that what was at one texture coordinate comes to another. */
  pan(fromFrac, toFrac) {
    const pan = this.nv.scene.pan2Dxyzmm;
    const [from, to] = [this.nv.frac2mm(fromFrac), this.nv.frac2mm(toFrac)];
    this.nv.scene.pan2Dxyzmm = [0, 1, 2]
      .map((n) => pan[n] + pan[3] * (to[n] - from[n]))
      .concat(pan[3]);
    this.draw();
  }

  rotate(byX, byY) {
    const { scene } = this.nv;
    scene.renderAzimuth = (scene.renderAzimuth - byX * 0.5 + 360) % 360;
    scene.renderElevation = Math.min(90, Math.max(-90, scene.renderElevation + byY * 0.5));
    this.draw();
  }

  zoom3d(factor) {
    const { scene } = this.nv;
    scene.volScaleMultiplier = Math.min(4, Math.max(0.4, scene.volScaleMultiplier * factor));
    this.draw();
  }

  // Intensity

  get window() {
    return [this.volume.cal_min, this.volume.cal_max];
  }

  set window([low, high]) {
    const { volume } = this;
    volume.cal_min = low;
    volume.cal_max = high > low ? high : low + 1e-6;
    this.nv.refreshLayers(volume, 0);
    this.draw();
  }

  set isSmooth(isSmooth) {
    this.nv.opts.isNearestInterpolation = !isSmooth;
    if (this.volume) this.nv.setInterpolation(!isSmooth);
    this.draw();
  }

  // Masks

  startLabels() {
    this.nv.createEmptyDrawing();
    this.nv.drawClearAllUndoBitmaps();
    this.nv.clickToSegmentGrowingBitmap = null;
    this.labels = this.nv.drawBitmap;
  }

  set maskOpacity(opacity) {
    this.nv.drawOpacity = opacity;
    this.draw();
  }

  set hasOutline(isOn) {
    this.nv.drawRimOpacity = isOn ? 1 : -1;
    this.draw();
  }

  /**
   * Say which objects are shown, later over earlier, and what changed; only that is drawn anew.
   * @param {{id: number, colour: number[], visible: boolean}[]} objects
   * @param {Map<number, {box: number[][], voxels: Uint8Array}>} masks by object id
   */
  showObjects(objects, masks) {
    if (!this.labels) return;
    const shown = objects.filter((o) => o.visible && masks.has(o.id)).slice(-MAX_SLOTS);
    let dirty = null;
    const next = this.withSlots(shown, masks);
    for (const id of new Set([...this.masks.keys(), ...next.keys()])) {
      const [before, after] = [this.masks.get(id), next.get(id)];
      if (before?.mask === after?.mask && before?.slot === after?.slot) continue;
      for (const entry of [before, after]) {
        if (entry && isFilled(entry.mask.box)) dirty = hull(dirty, entry.mask.box);
      }
    }
    this.masks = next;
    const colours = shown.map(({ id, colour }) => [next.get(id).slot, colour]).join(";");
    if (!dirty && colours === this.colours) return;
    if (colours !== this.colours) this.colourSlots(shown);
    this.colours = colours;
    if (dirty) this.repaint(dirty);
    this.draw();
  }

  /** Objects keep their slot while they are shown, so that others need no repainting. */
  withSlots(shown, masks) {
    const kept = new Map(shown.map(({ id }) => [id, this.masks.get(id)?.slot]));
    const taken = new Set(kept.values());
    let free = 1;
    return new Map(
      shown.map(({ id }) => {
        let slot = kept.get(id);
        if (!slot) {
          while (taken.has(free)) free += 1;
          taken.add(free);
          slot = free;
        }
        return [id, { mask: masks.get(id), slot }];
      }),
    );
  }

  repaint(fileBox) {
    const box = rasBox(this.grid, fileBox);
    clearRasBox(this.labels, this.grid, box);
    for (const { mask, slot } of this.masks.values()) {
      pasteMask(this.labels, this.grid, mask, slot, fileBox);
    }
    this.upload(box);
  }

  /** Send one box of the labels to the graphics card; whole volumes would take long. */
  upload([[x0, x1], [y0, y1], [z0, z1]]) {
    const { gl } = this.nv;
    const [nx, ny] = this.grid.rasShape;
    gl.activeTexture(gl.TEXTURE7);
    gl.bindTexture(gl.TEXTURE_3D, this.nv.drawTexture);
    const setting = [
      [gl.UNPACK_ALIGNMENT, 1, 1],
      [gl.UNPACK_ROW_LENGTH, nx, 0],
      [gl.UNPACK_IMAGE_HEIGHT, ny, 0],
      [gl.UNPACK_SKIP_PIXELS, x0, 0],
      [gl.UNPACK_SKIP_ROWS, y0, 0],
      [gl.UNPACK_SKIP_IMAGES, z0, 0],
    ];
    for (const [name, value] of setting) gl.pixelStorei(name, value);
    const size = [x1 - x0, y1 - y0, z1 - z0];
    const format = [gl.RED, gl.UNSIGNED_BYTE];
    gl.texSubImage3D(gl.TEXTURE_3D, 0, x0, y0, z0, ...size, ...format, this.labels);
    for (const [name, , usual] of setting) gl.pixelStorei(name, usual);
  }

  colourSlots(shown) {
    const lut = new Uint8ClampedArray(256 * 4);
    for (const { id, colour } of shown) lut.set([...colour, 255], this.masks.get(id).slot * 4);
    this.nv.drawLut = { lut, labels: [] };
    this.nv.refreshColormaps();
  }

  /** The slot of the label volume at a file voxel, 0 where there is no object. */
  slotAt(ijk) {
    const [x, y, z] = fileToRas(this.grid, ijk);
    const [nx, ny] = this.grid.rasShape;
    return this.labels[x + nx * (y + ny * z)];
  }
}

function isFilled(box) {
  return box.every(([low, high]) => low < high);
}

function rendererName(gl) {
  const info = gl.getExtension("WEBGL_debug_renderer_info");
  return String(gl.getParameter(info ? info.UNMASKED_RENDERER_WEBGL : gl.RENDERER));
}
