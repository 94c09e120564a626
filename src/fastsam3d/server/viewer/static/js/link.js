/**
 * The page's session with the server: claiming it, taking it up after a reload, losing it and
 * bringing the work back; and what is shown when something fails.
 */

import { byId } from "./dom.js";
import { askForKey, hideProgress, showTrouble, toast, toastError } from "./feedback.js";
import { explain, isFatal, isSilent } from "./messages.js";
import { SCAN_KEY } from "./scans.js";

export class Link {
  constructor(app) {
    Object.assign(this, { app, api: app.api, store: app.store, view: app.view });
    app.api.addEventListener("trouble", ({ detail }) => this.fail(detail));
  }

  /** Claim a session; asks for the key when the server wants one. */
  async connect() {
    this.store.set({ connection: "connecting" });
    this.api.key ??= sessionStorage.getItem("fastsam3d.key") ?? keyFromAddress();
    let wasRefused = Boolean(this.api.key);
    for (;;) {
      try {
        const server = await this.api.claim();
        if (this.api.key) sessionStorage.setItem("fastsam3d.key", this.api.key);
        // While the socket is open the server knows that we are here, even where the browser
        // slows the timers of a page in the background.
        await this.api.connect();
        this.store.set({ connection: "online", server });
        return true;
      } catch (error) {
        if (explain(error).way !== "key") {
          this.fail(error, () => this.connect());
          return false;
        }
        this.api.key = await askForKey(wasRefused);
        wasRefused = true;
      }
    }
  }

  /** After a reload of the page: the session, scan and objects of before, if they still exist. */
  async resume() {
    this.api.key = sessionStorage.getItem("fastsam3d.key");
    const server = await this.api.takeUp();
    if (!server) {
      sessionStorage.removeItem(SCAN_KEY);
      return false;
    }
    this.store.set({ connection: "online", server });
    try {
      await this.api.connect();
      const scan = JSON.parse(sessionStorage.getItem(SCAN_KEY));
      if (scan) {
        this.api.shape = scan.shape;
        this.store.set({ phase: "loading", scan: { name: scan.name } });
        await this.app.scans.showAsServerReads(scan);
        this.app.scans.begin(scan);
        await this.app.call("masks.get");
        await this.app.fetchPrompts();
      }
    } catch {
      // No scan was open; the session itself can be used.
      this.store.set({ phase: "empty", scan: null });
    }
    hideProgress();
    return true;
  }

  /** Show a failure: in passing, or with ways out when the session is in trouble. */
  fail(error, retry = null) {
    hideProgress();
    if (isSilent(error)) return;
    const { way } = explain(error);
    if (!isFatal(error) && way !== "open") {
      toastError(error);
      return;
    }
    if (isFatal(error)) this.store.set({ connection: "offline" });
    const again = retry ?? (() => this.reconnect());
    const ways = {
      restart: { label: this.app.scans.files.length ? "Bring my work back" : "Start again", run: () => this.restart() },
      key: { label: "Enter the key", run: () => this.reconnect() },
      retry: { label: "Try again", run: again },
      open: { label: "Choose another file", run: () => byId("file-input").click() },
    };
    showTrouble(error, [
      { label: "Not now", run: () => {} },
      { ...(ways[way] ?? ways.retry), primary: true },
    ]);
  }

  /** After a lost connection: go on where we were, or begin anew when the session is gone. */
  async reconnect() {
    if (!this.api.lease) {
      await this.restart();
      return;
    }
    try {
      await this.api.json("POST", "session/heartbeat");
      this.store.set({ connection: "online" });
      if (this.app.state.phase === "ready") await this.app.fetchPrompts();
    } catch (error) {
      this.fail(error);
    }
  }

  /** A new session with the same scan and prompts. */
  async restart() {
    const { objects } = this.app.state.study;
    if (!(await this.connect()) || !this.app.scans.files.length) return;
    const view = { crosshair: this.view.crosshair };
    await this.app.scans.open(this.app.scans.files, this.app.scans.part);
    if (this.app.state.phase !== "ready") return;
    for (const item of objects) await this.replay(item);
    this.view.crosshair = view.crosshair;
    if (objects.length) toast("Your work is back", "Masks were computed anew from your prompts.", "info");
  }

  async replay({ name, colour, prompts, locked }) {
    const id = await this.app.addObject(name, colour);
    if (id === null) return;
    const plain = prompts.filter(({ type }) => type !== "mask").map(({ id: _, ...prompt }) => prompt);
    if (plain.length) {
      await this.app.call("prompt.add", { object: id, prompts: plain });
      await this.app.fetchPrompts();
    }
    if (locked) await this.app.setLocked(id, true);
  }
}

/** A key in the address (after #key=) is taken and removed from sight; it never left the browser. */
function keyFromAddress() {
  const found = /[#&]key=([^&]+)/.exec(location.hash);
  if (!found) return null;
  history.replaceState(null, "", location.pathname + location.search);
  return decodeURIComponent(found[1]);
}
