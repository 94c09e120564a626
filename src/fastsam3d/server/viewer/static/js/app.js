/**
 * What the page can do. Panels, tools and keys call these methods; the store tells them the outcome.
 *
 * The server holds the truth (objects, prompts, masks, undo); this side keeps copies to show, and
 * to bring everything back should the session end.
 */

import { Api } from "./api.js";
import { clearToasts, hideProgress, showProgress, toast } from "./feedback.js";
import { saveAs } from "./files.js";
import { Link } from "./link.js";
import { isFatal } from "./messages.js";
import { drawnPrompt, pointPrompt } from "./prompts.js";
import { Scans } from "./scans.js";
import { emptyStudy } from "./store.js";

const STATISTICS_DELAY_MS = 350;
const STAGES = {
  reading: "Reading the scan",
  encoding: "Looking at this region",
  decoding: "Finding the object",
};
const STAGE_DELAY_MS = 250;

export class App {
  constructor(store, view) {
    this.store = store;
    this.view = view;
    this.api = new Api(new URL("api/v1/", document.baseURI));
    this.link = new Link(this);
    this.scans = new Scans(this);
    this.masks = new Map();
    this.statisticsTimer = 0;
    this.formerLayout = null;
    this.creating = null;
    this.stageTimer = 0;
    this.api.addEventListener("progress", ({ detail }) => this.showStage(detail.stage));
    store.watch(["study", "hidden"], () => this.showObjects());
  }

  get state() {
    return this.store.state;
  }

  /** One tile over the whole stage, or back to how it was. */
  toggleSingle(plane) {
    if (this.view.layout === "single") this.setLayout(this.formerLayout ?? "grid");
    else {
      this.formerLayout = this.view.layout;
      this.setLayout("single", plane);
    }
  }

  setLayout(layout, main = undefined) {
    this.view.setLayout(layout, main);
    this.store.set({ layout });
  }

  /** Radius of the scribble's brush, 0.5 to 20 mm. */
  setBrush(radiusMm) {
    this.store.set({ brushMm: Math.min(20, Math.max(0.5, radiusMm)) });
  }

  set3d(isShown) {
    this.view.set3d(isShown);
    this.store.set({ with3d: isShown, layout: this.view.layout });
  }

  reset() {
    clearToasts();
    this.masks.clear();
    this.store.set({
      study: emptyStudy(),
      active: null,
      hidden: new Set(),
      candidates: null,
      statistics: null,
      pending: [],
      latency: null,
      chosenPrompt: null,
    });
  }

  // Requests

  /**
   * Ask the server, take over masks and study; failures are shown and give null.
   * @returns {Promise<object | null>} the reply
   */
  async call(type, fields = {}) {
    try {
      const { reply, masks } = await this.api.request(type, fields);
      this.takeOver(reply, masks);
      return reply;
    } catch (error) {
      this.link.fail(error);
      return null;
    } finally {
      this.endStage();
    }
  }

  /** The server's answer becomes what the page knows. */
  takeOver(reply, masks) {
    if (this.state.connection !== "online") this.store.set({ connection: "online" });
    for (const mask of masks) this.masks.set(mask.header.object, mask);
    const ids = new Set(reply.objects.map((o) => o.id));
    for (const id of this.masks.keys()) if (!ids.has(id)) this.masks.delete(id);
    const prompts = new Map(this.state.study.objects.map((o) => [o.id, o.prompts]));
    const objects = reply.objects.map((o) => ({ ...o, prompts: prompts.get(o.id) ?? [] }));
    this.setStudy({ ...reply, objects });
  }

  setStudy({ objects, can_undo, can_redo, overlap }) {
    const ids = objects.map((o) => o.id);
    const active = ids.includes(this.state.active) ? this.state.active : (ids.at(-1) ?? null);
    this.store.set({ study: { objects, can_undo, can_redo, overlap }, active });
    this.measureSoon();
  }

  /** Prompts, which answers do not repeat, as the server has them. */
  async fetchPrompts() {
    const reply = await this.call("study.get");
    if (reply) this.setStudy(reply.result);
  }

  /** Prompts that were sent, with the ids that they were given; no second question needed. */
  async notePrompts(object, prompts, ids) {
    const objects = this.state.study.objects.map((o) =>
      o.id === object
        ? { ...o, prompts: [...o.prompts, ...prompts.map((prompt, n) => ({ id: ids[n], ...prompt }))] }
        : o,
    );
    const item = objects.find((o) => o.id === object);
    const isComplete = ids.length === prompts.length && item?.prompts.length === item?.num_prompts;
    if (isComplete) this.setStudy({ ...this.state.study, objects });
    else await this.fetchPrompts();
  }

  showStage(stage) {
    if (!STAGES[stage]) return;
    clearTimeout(this.stageTimer);
    // Quick steps would only flicker.
    this.stageTimer = setTimeout(() => showProgress(STAGES[stage]), STAGE_DELAY_MS);
  }

  endStage() {
    clearTimeout(this.stageTimer);
    if (this.state.phase === "ready") hideProgress();
  }

  showObjects() {
    const { study, hidden } = this.state;
    this.view.showObjects(
      study.objects.map(({ id, colour }) => ({ id, colour, visible: !hidden.has(id) })),
      this.masks,
    );
  }

  // Prompts

  /**
   * Give the active object a prompt; the first one makes an object.
   * @param {object} prompt as fastsam3d.prompts.plain
   * @param {number} since when the user let go, `performance.now()`
   */
  async addPrompt(prompt, since = performance.now()) {
    if (this.state.phase !== "ready") return;
    if (this.store.activeObject?.locked) {
      toast("This object is locked", "Unlock it, or choose or add another one.", "info");
      return;
    }
    const pending = { prompt };
    this.store.set({ pending: [...this.state.pending, pending] });
    try {
      const object = this.state.active ?? (await this.firstObject());
      if (object === null) return;
      const reply = await this.call("prompt.add", { object, prompts: [prompt] });
      if (!reply) return;
      const { header } = this.masks.get(object);
      this.measureLatency(since, header.click_ms);
      for (const warning of header.warnings) toast("Please check the result", warning, "info");
      this.store.set({ candidates: null });
      await this.notePrompts(object, [prompt], reply.result.prompts);
    } finally {
      this.store.set({ pending: this.state.pending.filter((item) => item !== pending) });
    }
  }

  /** A click at a texture coordinate of the view. */
  addPoint(frac, isPositive, since) {
    const { shape } = this.state.scan;
    return this.addPrompt(pointPrompt(shape, this.view.voxelOf(frac), isPositive), since);
  }

  /** What was drawn on a slice, as texture coordinates; see `drawnPrompt`. */
  addDrawn(kind, plane, fracs, isPositive, since) {
    const prompt = drawnPrompt(
      kind,
      fracs.map((frac) => this.view.voxelOf(frac)),
      {
        shape: this.state.scan.shape,
        axis: this.view.fileAxisAcross(plane),
        isPositive,
        radiusMm: this.state.brushMm,
      },
    );
    return this.addPrompt(prompt, since);
  }

  /** Several quick first clicks share one new object. */
  firstObject() {
    this.creating ??= this.addObject().finally(() => {
      this.creating = null;
    });
    return this.creating;
  }

  measureLatency(since, server) {
    this.view.addEventListener(
      "drawn",
      () => {
        this.store.set({ latency: { shown: performance.now() - since, server: server ?? null } });
      },
      { once: true },
    );
    this.view.draw();
  }

  async removePrompts(ids) {
    const reply = await this.call("prompt.remove", { object: this.state.active, ids });
    if (reply) await this.fetchPrompts();
    this.store.set({ candidates: null, chosenPrompt: null });
  }

  async undo() {
    if (this.state.study.can_undo && (await this.call("undo"))) await this.fetchPrompts();
    this.store.set({ candidates: null });
  }

  async redo() {
    if (this.state.study.can_redo && (await this.call("redo"))) await this.fetchPrompts();
    this.store.set({ candidates: null });
  }

  // Candidates

  /** Other readings of the prompts, where the model has them; asked for, since they cost a while. */
  async findCandidates() {
    const object = this.store.activeObject;
    if (!object?.prompts.length || object.locked) return;
    showProgress("Looking for alternatives");
    const reply = await this.call("candidates", { object: object.id });
    const items = reply?.result.candidates ?? [];
    if (reply && items.length < 2) {
      toast("No alternatives", "The model is sure of this one; correct it with clicks.", "info");
    }
    const chosen = items.findIndex(({ kind }) => kind === "answer");
    this.store.set({ candidates: items.length > 1 ? { object: object.id, items, chosen } : null });
  }

  async chooseCandidate(index) {
    const { candidates } = this.state;
    if (!candidates?.items[index]) return;
    const reply = await this.call("candidate.choose", { object: candidates.object, index });
    if (!reply) return;
    await this.fetchPrompts();
    this.store.set({ candidates: { ...candidates, chosen: index } });
  }

  // Objects

  /** @returns {Promise<number | null>} the new object's id */
  async addObject(name, colour) {
    const fields = Object.entries({ name, colour }).filter(([, value]) => value !== undefined);
    const reply = await this.call("object.add", Object.fromEntries(fields));
    if (!reply) return null;
    this.activate(reply.result.object);
    return reply.result.object;
  }

  activate(id) {
    this.store.set({ active: id, candidates: null, chosenPrompt: null });
    this.measureSoon();
  }

  describe(id, changes) {
    return this.call("object.describe", { object: id, ...changes });
  }

  async deleteObject(id) {
    await this.call("object.delete", { object: id });
  }

  setLocked(id, isLocked) {
    return this.call(isLocked ? "object.lock" : "object.unlock", { object: id });
  }

  setHidden(id, isHidden) {
    const hidden = new Set(this.state.hidden);
    if (isHidden) hidden.add(id);
    else hidden.delete(id);
    this.store.set({ hidden });
  }

  // Measurements and files

  /** Measure the active object once clicking pauses. */
  measureSoon() {
    clearTimeout(this.statisticsTimer);
    const object = this.store.activeObject;
    if (!object?.prompts.length) {
      this.store.set({ statistics: null });
      return;
    }
    this.statisticsTimer = setTimeout(() => this.measure(object.id), STATISTICS_DELAY_MS);
  }

  async measure(object) {
    try {
      const { reply } = await this.api.request("statistics", { object });
      if (this.state.active === object) this.store.set({ statistics: { object, values: reply.result } });
    } catch (error) {
      if (isFatal(error)) this.link.fail(error);
      else this.store.set({ statistics: null });
    }
  }

  /** @param {"nii.gz" | "seg.nrrd"} format */
  async save(format) {
    showProgress("Writing the file");
    try {
      const blob = await this.api.download(`session/export?format=${format}`);
      const stem = this.state.scan.name.replace(/\.(nii|nii\.gz|nrrd|mha|dcm)$/i, "");
      saveAs(blob, format === "nii.gz" ? `${stem}.labels.nii.gz` : `${stem}.${format}`);
      hideProgress();
    } catch (error) {
      this.link.fail(error, () => this.save(format));
    }
  }
}
