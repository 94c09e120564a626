/** The scan: files on their way to the server and to the screen, and the window it is seen in. */

import { choose, hideProgress, showProgress } from "./feedback.js";
import { isReadableHere, titleOf } from "./files.js";
import { sameGrid } from "./mapping.js";
import { questionIn } from "./messages.js";
import { presetsFor } from "./presets.js";

export const SCAN_KEY = "fastsam3d.scan";

export class Scans {
  constructor(app) {
    Object.assign(this, { app, api: app.api, store: app.store, view: app.view });
    this.files = [];
    this.part = {};
    this.upload = null;
  }

  /** The scan is on the screen and on the server. */
  begin(scan) {
    sessionStorage.setItem(SCAN_KEY, JSON.stringify(scan));
    this.store.set({ phase: "ready", scan });
    this.choosePreset(presetsFor(scan)[0].id);
  }

  /**
   * Open a scan: shown at once where the browser can read it, while it travels to the server.
   * @param {File[]} files
   * @param {{time?: number, times?: number, series?: string}} part of a series in time, which
   *   volume of how many; of a folder, which DICOM series
   */
  async open(files, part = {}) {
    if (!files.length) return;
    this.upload?.abort();
    const upload = new AbortController();
    this.upload = upload;
    if (!this.api.lease && !(await this.app.link.connect())) return;
    this.files = files;
    this.part = part;
    this.app.reset();
    this.store.set({ phase: "loading", scan: { name: titleOf(files) } });
    const onProgress = (fraction) => {
      if (fraction < 1) showProgress("Sending the scan", fraction, () => upload.abort());
      else showProgress("Reading the scan");
    };
    onProgress(0);
    const early = isReadableHere(files)
      ? this.view.show(files[0], part.time ?? 0).catch(() => this.view.clear())
      : this.view.clear();
    try {
      const facts = await this.api.sendVolume(files, onProgress, upload.signal, part);
      await early;
      await this.showAsServerReads(facts);
      this.begin({ ...facts, name: titleOf(files), ...part });
      hideProgress();
    } catch (error) {
      await early;
      await this.giveUp(error, files);
    }
  }

  /** Ask what the server needs to know, or say why the files cannot be opened. */
  async giveUp(error, files) {
    this.app.reset();
    this.view.clear();
    this.store.set({ phase: "empty", scan: null });
    const question = questionIn(error);
    if (question?.times) {
      await this.open(files, { time: 0, times: question.times });
    } else if (question?.series) {
      hideProgress();
      const options = question.series.map(({ uid, label }) => ({ value: uid, label }));
      const series = await choose("Which series?", options);
      if (series) await this.open(files, { series });
    } else {
      this.files = [];
      this.app.link.fail(error, () => this.open(files));
    }
  }

  /** Where browser and server read a file differently, or the browser cannot, the server is right. */
  async showAsServerReads({ shape, affine }) {
    const { view } = this;
    const isSame =
      view.grid &&
      view.grid.fileShape.every((n, axis) => n === shape[axis]) &&
      sameGrid(view.affine, affine, shape);
    if (isSame) return;
    showProgress("Preparing the images");
    const blob = await this.api.download("session/volume.nii");
    await view.show(new File([blob], "volume.nii"));
  }

  choosePreset(id) {
    const preset = presetsFor(this.app.state.scan).find((p) => p.id === id);
    if (!preset) return;
    this.view.window = [preset.low, preset.high];
    this.store.set({ preset: id });
  }

  /** A window that is none of the presets. */
  setWindow(low, high) {
    this.view.window = [low, high];
    this.store.set({ preset: "custom" });
  }
}
