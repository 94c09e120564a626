/** What the page knows, in one place; listeners hear which fields changed. */

/** @returns the state of a page that has just been opened */
function initialState() {
  return {
    phase: "empty", // empty, loading, ready
    connection: "connecting", // connecting, online, offline
    server: null, // what the server said when the session began
    scan: null, // {name, shape, spacing, affine, intensity, modality}
    study: emptyStudy(),
    active: null, // id of the object that prompts go to
    hidden: new Set(), // ids of objects that are not shown
    candidates: null, // {object, items, chosen}
    statistics: null, // {object, values}
    tool: "point",
    isPositive: true,
    brushMm: 3,
    showMarks: true,
    chosenPrompt: null, // {object, id} pointed at in the list
    pending: [], // prompts on their way to the server: {object, prompt}
    latency: null, // {shown, server} in ms
    preset: "auto", // or "custom"
    layout: "grid",
    with3d: true,
  };
}

export function emptyStudy() {
  return { objects: [], can_undo: false, can_redo: false, overlap: "last_wins" };
}

export class Store extends EventTarget {
  constructor() {
    super();
    this.state = initialState();
  }

  /** Change fields and tell listeners, synchronously. */
  set(changes) {
    Object.assign(this.state, changes);
    this.dispatchEvent(new CustomEvent("change", { detail: new Set(Object.keys(changes)) }));
  }

  /** Call `listener(state)` now and whenever one of the fields changes. */
  watch(fields, listener) {
    this.addEventListener("change", ({ detail }) => {
      if (fields.some((field) => detail.has(field))) listener(this.state);
    });
    listener(this.state);
  }

  /** The object that prompts go to, or null. */
  get activeObject() {
    return this.state.study.objects.find((o) => o.id === this.state.active) ?? null;
  }
}
