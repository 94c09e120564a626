/**
 * What pointers do on the images. One finger or the left button works with the chosen tool, the
 * right button with its opposite sign; wheel, middle button and two fingers move the view.
 */

import { PLANES } from "./planes.js";

const CLICK_SLOP = 5;
const VERTEX_DISTANCE = 3;
const MAX_VERTICES = 500;
const LONG_PRESS_MS = 550;
const WHEEL_NOTCH = 60;
const DRAWING = new Set(["box", "scribble", "lasso"]);
const CURSORS = { point: "cross", box: "cross", scribble: "cross", lasso: "cross", navigate: "grab", window: "level" };

export class Tools {
  constructor(app, marks, stage) {
    this.app = app;
    this.store = app.store;
    this.view = app.view;
    this.marks = marks;
    this.stage = stage;
    this.pointers = new Map();
    this.action = null;
    this.wheel = 0;
    stage.addEventListener("pointerdown", (event) => this.down(event));
    stage.addEventListener("pointermove", (event) => this.move(event));
    stage.addEventListener("pointerup", (event) => this.up(event));
    stage.addEventListener("pointercancel", () => this.cancel());
    stage.addEventListener("wheel", (event) => this.scroll(event), { passive: false });
    stage.addEventListener("contextmenu", (event) => {
      if (isOnImages(event)) event.preventDefault();
    });
    stage.addEventListener("dblclick", (event) => this.doubleClick(event));
    this.store.watch(["tool", "phase"], ({ tool }) => {
      stage.dataset.cursor = CURSORS[tool];
      this.cancel();
    });
  }

  get isReady() {
    return this.store.state.phase === "ready" || Boolean(this.view.grid);
  }

  position(event) {
    const rect = this.stage.getBoundingClientRect();
    return [event.clientX - rect.left, event.clientY - rect.top];
  }

  // Pointers

  down(event) {
    if (!this.isReady || !isOnImages(event)) return;
    const [x, y] = this.position(event);
    const tile = this.view.tileAt(x, y);
    if (!tile) return;
    event.target.closest(".tile")?.focus({ preventScroll: true, focusVisible: false });
    if (event.button !== 1) event.preventDefault();
    this.stage.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, [x, y]);
    if (this.pointers.size === 2) {
      this.cancel();
      this.action = this.pinch(tile);
      return;
    }
    if (this.pointers.size > 2) return;
    this.action = this.begin(event, tile, x, y);
  }

  /** What a press at this place with this button starts. */
  begin(event, tile, x, y) {
    const { tool, isPositive } = this.store.state;
    if (tile.plane === "render") return new Rotate(this, x, y);
    if (event.button === 1 || (event.button === 0 && event.shiftKey)) return new Pan(this, tile.plane, x, y);
    const isRight = event.button === 2;
    if (DRAWING.has(tool)) {
      const sign = isRight || event.altKey ? !isPositive : isPositive;
      return new Draw(this, tool, tile.plane, sign, x, y);
    }
    if (tool === "point") {
      const sign = isRight || event.altKey ? !isPositive : isPositive;
      const isTouch = event.pointerType === "touch";
      return new Click(this, tile.plane, sign, x, y, { isRight, isTouch });
    }
    if (tool === "window" || isRight) return new Level(this, x, y);
    return new Look(this, tile.plane, x, y);
  }

  move(event) {
    const [x, y] = this.position(event);
    if (this.pointers.has(event.pointerId)) {
      this.pointers.set(event.pointerId, [x, y]);
      this.action?.move(x, y);
    }
    this.hover(x, y);
  }

  up(event) {
    if (!this.pointers.delete(event.pointerId)) return;
    const [x, y] = this.position(event);
    const { action } = this;
    if (this.pointers.size === 0) this.action = null;
    action?.end?.(x, y, event.timeStamp);
  }

  /** Give up what was begun. */
  cancel() {
    this.action?.cancel?.();
    this.action = null;
    this.marks.setSketch(null);
  }

  hover(x, y) {
    const tile = this.isReady ? this.view.tileAt(x, y) : null;
    const frac = tile && PLANES[tile.plane] ? this.view.fracAt(tile.plane, x, y) : null;
    this.stage.dispatchEvent(new CustomEvent("hover", { detail: { frac } }));
  }

  scroll(event) {
    if (!this.isReady || !isOnImages(event)) return;
    const [x, y] = this.position(event);
    const tile = this.view.tileAt(x, y);
    if (!tile) return;
    event.preventDefault();
    const delta = event.deltaMode === 1 ? event.deltaY * 20 : event.deltaY;
    if (tile.plane === "render") {
      this.view.zoom3d(Math.exp(-delta / 600));
    } else if (event.ctrlKey || event.metaKey) {
      const frac = this.view.fracAt(tile.plane, x, y, true) ?? undefined;
      this.view.zoom(Math.exp(-delta / 400), frac);
    } else {
      this.wheel += delta;
      const notches = Math.trunc(this.wheel / WHEEL_NOTCH) || Math.sign(Math.trunc(delta / 50));
      if (!notches) return;
      this.wheel = 0;
      this.view.setSlice(tile.plane, this.view.sliceIndex(tile.plane) - notches);
    }
  }

  doubleClick(event) {
    const [x, y] = this.position(event);
    const tile = this.view.tileAt(x, y);
    if (!tile || !isOnImages(event) || this.store.state.tool !== "navigate") return;
    this.app.toggleSingle(tile.plane);
  }

  /** Two fingers: the distance zooms, the middle moves. */
  pinch(tile) {
    const spread = () => {
      const [a, b] = [...this.pointers.values()];
      return { size: Math.hypot(a[0] - b[0], a[1] - b[1]), x: (a[0] + b[0]) / 2, y: (a[1] + b[1]) / 2 };
    };
    let last = spread();
    return {
      move: () => {
        if (this.pointers.size < 2) return;
        const now = spread();
        if (tile.plane === "render") {
          this.view.zoom3d(now.size / last.size);
        } else {
          const from = this.view.fracAt(tile.plane, last.x, last.y, true);
          const to = this.view.fracAt(tile.plane, now.x, now.y, true);
          this.view.zoom(now.size / last.size, to);
          this.view.pan(from, to);
        }
        last = now;
      },
    };
  }
}

/** Moves the cross; adds nothing. */
class Look {
  constructor(tools, plane, x, y) {
    Object.assign(this, { tools, plane });
    this.move(x, y);
  }

  move(x, y) {
    const { view } = this.tools;
    const frac = view.fracAt(this.plane, x, y, true);
    if (frac) view.crosshair = frac;
  }
}

/** A press without movement is a prompt; with movement, left looks around and right sets the window. */
class Click {
  constructor(tools, plane, isPositive, x, y, { isRight, isTouch }) {
    Object.assign(this, { tools, plane, isPositive, x, y, isRight, isTouch });
    this.inner = null;
    this.lastY = y;
    // Fingers have no right button: a long press is the opposite sign.
    this.timer = isTouch ? setTimeout(() => this.longPress(), LONG_PRESS_MS) : 0;
  }

  longPress() {
    this.finish(this.x, this.y, !this.isPositive, performance.now());
    this.tools.action = null;
    navigator.vibrate?.(20);
  }

  move(x, y) {
    if (!this.inner && Math.hypot(x - this.x, y - this.y) > CLICK_SLOP * (this.isTouch ? 2 : 1)) {
      clearTimeout(this.timer);
      if (this.isTouch) this.inner = new Leaf(this.tools, this.plane, this.y);
      else if (this.isRight) this.inner = new Level(this.tools, this.x, this.y);
      else this.inner = new Look(this.tools, this.plane, x, y);
    }
    this.inner?.move(x, y);
  }

  end(x, y, since) {
    clearTimeout(this.timer);
    if (!this.inner) this.finish(x, y, this.isPositive, since);
  }

  finish(x, y, isPositive, since) {
    const { view, app } = this.tools;
    const frac = view.fracAt(this.plane, x, y);
    if (!frac) return;
    view.aim(frac);
    app.addPoint(frac, isPositive, since);
  }

  cancel() {
    clearTimeout(this.timer);
  }
}

/** One finger up and down turns the pages. */
class Leaf {
  constructor(tools, plane, y) {
    Object.assign(this, { tools, plane, y });
    this.from = tools.view.sliceIndex(plane);
    const count = tools.view.sliceCount(plane);
    this.pixels = Math.max(4, Math.min(18, 500 / count));
  }

  move(_, y) {
    const { view } = this.tools;
    view.setSlice(this.plane, this.from + Math.round((this.y - y) / this.pixels));
  }
}

class Pan {
  constructor(tools, plane, x, y) {
    Object.assign(this, { tools, plane });
    this.last = [x, y];
  }

  move(x, y) {
    const { view } = this.tools;
    const from = view.fracAt(this.plane, ...this.last, true);
    const to = view.fracAt(this.plane, x, y, true);
    if (from && to) view.pan(from, to);
    this.last = [x, y];
  }
}

class Rotate {
  constructor(tools, x, y) {
    Object.assign(this, { tools });
    this.last = [x, y];
  }

  move(x, y) {
    this.tools.view.rotate(x - this.last[0], y - this.last[1]);
    this.last = [x, y];
  }
}

/** Up brightens, right widens; the whole stage is one span of the present window. */
class Level {
  constructor(tools, x, y) {
    Object.assign(this, { tools, x, y });
    const [low, high] = tools.view.window;
    this.width = high - low;
    this.level = (low + high) / 2;
  }

  move(x, y) {
    const width = this.width * Math.exp((x - this.x) / 300);
    const level = this.level + ((y - this.y) / 400) * this.width;
    this.tools.app.scans.setWindow(level - width / 2, level + width / 2);
  }
}

/** Box, scribble and lasso: drawn on one slice, sent when let go. */
class Draw {
  constructor(tools, kind, plane, isPositive, x, y) {
    Object.assign(this, { tools, kind, plane, isPositive });
    this.start = [x, y];
    this.points = [[x, y]];
    this.isInside = Boolean(tools.view.fracAt(plane, x, y, true));
  }

  move(x, y) {
    const [lastX, lastY] = this.points.at(-1);
    if (this.kind === "box") this.points = [this.start, [x, y]];
    else if (Math.hypot(x - lastX, y - lastY) >= VERTEX_DISTANCE) this.points.push([x, y]);
    const { view, store, marks } = this.tools;
    marks.setSketch({
      kind: this.kind,
      points: this.kind === "box" ? rectangle(this.start, [x, y]) : this.points,
      isPositive: this.kind === "box" || this.isPositive,
      width: 2 * store.state.brushMm * view.pixelsPerMm(this.plane),
    });
  }

  end(x, y, since) {
    this.tools.marks.setSketch(null);
    this.move(x, y);
    this.tools.marks.setSketch(null);
    const isTiny = this.kind !== "scribble" && extent(this.points) < CLICK_SLOP;
    if (!this.isInside || isTiny) return;
    const { view, app } = this.tools;
    const fracs = thinned(this.points).map(([px, py]) => view.fracAt(this.plane, px, py, true));
    app.addDrawn(this.kind, this.plane, fracs, this.isPositive, since);
  }
}

function rectangle([x0, y0], [x1, y1]) {
  return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]];
}

function extent(points) {
  const spans = [0, 1].map((n) => {
    const values = points.map((p) => p[n]);
    return Math.max(...values) - Math.min(...values);
  });
  return Math.min(Math.max(...spans), points.length > 2 ? Infinity : Math.min(...spans));
}

function thinned(points) {
  const every = Math.ceil(points.length / MAX_VERTICES);
  return points.filter((_, n) => n % every === 0 || n === points.length - 1);
}

/** Controls that lie over the images keep their own behaviour. */
function isOnImages(event) {
  return !event.target.closest("button, input, .welcome, .toast, .progress");
}
