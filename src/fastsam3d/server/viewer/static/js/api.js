/**
 * The native API: REST for volumes and files, one WebSocket for everything that is clicked.
 *
 * Every failure becomes an ApiError with the server's code; `messages.js` turns codes into words.
 */

import { readMask } from "./masks.js";

const SESSION_KEY = "fastsam3d.session";
const HELLO_TIMEOUT_MS = 8000;

export class ApiError extends Error {
  /**
   * @param {string} code snake_case, from the server, or "offline", "cancelled"
   * @param {string} message one sentence
   * @param {number} status HTTP status, 0 when there was no answer
   */
  constructor(code, message, status = 0, retryAfter = null) {
    super(message);
    this.code = code;
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export class Api extends EventTarget {
  /** @param {URL} base where /api/v1/ is */
  constructor(base) {
    super();
    this.base = base;
    this.key = null;
    this.lease = null;
    this.socket = null;
    this.waiting = new Map();
    this.nextSeq = 1;
    this.shape = null;
    this.beat = 0;
  }

  // Session

  /** Claim a session of one's own. @returns what the server says about model and limits */
  async claim() {
    this.forget();
    const claimed = await this.json("POST", "sessions");
    this.hold(claimed);
    sessionStorage.setItem(SESSION_KEY, JSON.stringify(claimed));
    return claimed;
  }

  /**
   * Go on with the session of before a reload of the page.
   * @returns what the server said when it began, or null when there is none or it has ended
   */
  async takeUp() {
    const kept = JSON.parse(sessionStorage.getItem(SESSION_KEY) ?? "null");
    if (!kept) return null;
    this.lease = kept.lease;
    try {
      await this.json("POST", "session/heartbeat");
    } catch {
      this.forget();
      return null;
    }
    this.hold(kept);
    return kept;
  }

  hold({ lease, liveness_s: livenessSeconds }) {
    this.lease = lease;
    this.beat = setInterval(
      () => {
        this.json("POST", "session/heartbeat").catch((error) => this.report(error));
      },
      Math.max(5, livenessSeconds / 3) * 1000,
    );
  }

  /** Drop the session here; the server forgets it when its clock runs out. */
  forget() {
    clearInterval(this.beat);
    this.lease = null;
    sessionStorage.removeItem(SESSION_KEY);
    const { socket } = this;
    this.socket = null;
    socket?.close();
  }

  /** Tell the page of trouble that no call of its own met. */
  report(error) {
    if (error.status === 410 || error.code === "session_expired") clearInterval(this.beat);
    this.dispatchEvent(new CustomEvent("trouble", { detail: error }));
  }

  // REST

  headers() {
    const headers = {};
    if (this.key) headers.Authorization = `Bearer ${this.key}`;
    if (this.lease) headers["X-Lease-Token"] = this.lease;
    return headers;
  }

  async fetch(method, path, body) {
    let response;
    try {
      response = await fetch(new URL(path, this.base), { method, body, headers: this.headers() });
    } catch {
      throw new ApiError("offline", "The server does not answer.");
    }
    if (!response.ok) throw errorOf(response.status, await response.text(), response.headers);
    return response;
  }

  async json(method, path, body) {
    const response = await this.fetch(method, path, body);
    const text = await response.text();
    return text ? JSON.parse(text) : {};
  }

  /**
   * Send a scan.
   * @param {File[]} files one file, or the files of a DICOM folder
   * @param {(fraction: number) => void} onProgress share of the bytes that have left
   * @param {AbortSignal} signal
   * @param {{time?: number, series?: string}} part which volume in time, which DICOM series
   */
  async sendVolume(files, onProgress, signal, { time, series } = {}) {
    const query = new URLSearchParams();
    if (time !== undefined) query.set("time", time);
    if (series !== undefined) query.set("series_uid", series);
    let body = files[0];
    const isFolder = files.length > 1;
    if (isFolder) {
      body = new FormData();
      for (const file of files) body.append("files", file, file.name);
    } else {
      query.set("name", files[0].name);
    }
    const url = new URL(`session/volume?${query}`, this.base);
    const facts = await this.upload(isFolder ? "POST" : "PUT", url, body, onProgress, signal);
    this.shape = facts.shape;
    return facts;
  }

  upload(method, url, body, onProgress, signal) {
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open(method, url);
      for (const [name, value] of Object.entries(this.headers())) {
        request.setRequestHeader(name, value);
      }
      if (method === "PUT") {
        request.setRequestHeader("Content-Type", "application/octet-stream");
      }
      request.upload.onprogress = (event) => onProgress(event.loaded / event.total);
      request.onload = () => {
        if (request.status < 300) resolve(JSON.parse(request.responseText));
        else {
          const headers = { get: (name) => request.getResponseHeader(name) };
          reject(errorOf(request.status, request.responseText, headers));
        }
      };
      request.onerror = () => reject(new ApiError("offline", "The server does not answer."));
      request.onabort = () => reject(new ApiError("cancelled", "Cancelled."));
      signal?.addEventListener("abort", () => request.abort());
      request.send(body);
    });
  }

  /** A file the server makes, as a Blob. */
  async download(path) {
    return (await this.fetch("GET", path)).blob();
  }

  // WebSocket

  async connect() {
    if (this.socket?.readyState === WebSocket.OPEN) return;
    this.opening ??= this.open().finally(() => {
      this.opening = null;
    });
    await this.opening;
  }

  open() {
    const url = new URL("session/ws", this.base);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => socket.close(), HELLO_TIMEOUT_MS);
      socket.onopen = () => {
        const key = this.key ? { key: this.key } : {};
        socket.send(JSON.stringify({ type: "hello", lease: this.lease, ...key }));
      };
      socket.onmessage = (event) => {
        const first = typeof event.data === "string" ? JSON.parse(event.data) : {};
        clearTimeout(timer);
        if (first.type === "error") {
          reject(new ApiError(first.error.code, first.error.message));
          return;
        }
        socket.onmessage = ({ data }) => this.receive(data);
        resolve();
      };
      socket.onclose = (event) => {
        clearTimeout(timer);
        const error = closeError(event);
        reject(error);
        this.failAll(error);
        if (error.code !== "offline" && this.socket === socket) this.report(error);
      };
    });
  }

  failAll(error) {
    const requests = [...this.waiting.values()];
    this.waiting.clear();
    for (const { reject } of requests) reject(error);
  }

  receive(data) {
    if (typeof data !== "string") {
      this.receiveMask(data);
      return;
    }
    const message = JSON.parse(data);
    const request = this.waiting.get(message.seq);
    if (message.type === "progress") {
      this.dispatchEvent(new CustomEvent("progress", { detail: message }));
    } else if (request) {
      this.waiting.delete(message.seq);
      if (message.type === "error") {
        request.reject(new ApiError(message.error.code, message.error.message));
      } else request.resolve({ reply: message, masks: request.masks });
    }
  }

  receiveMask(buffer) {
    try {
      const mask = readMask(buffer, this.shape);
      this.waiting.get(mask.header.seq)?.masks.push(mask);
    } catch (error) {
      this.report(new ApiError("bad_mask", error.message));
    }
  }

  /**
   * Ask for something over the socket, which is opened when needed.
   * @returns {Promise<{reply: object, masks: object[]}>}
   */
  async request(type, fields = {}) {
    await this.connect();
    const seq = this.nextSeq;
    this.nextSeq += 1;
    return new Promise((resolve, reject) => {
      this.waiting.set(seq, { resolve, reject, masks: [] });
      this.socket.send(JSON.stringify({ type, seq, ...fields }));
    });
  }
}

function errorOf(status, text, headers) {
  let error = {};
  try {
    error = JSON.parse(text).error ?? {};
  } catch {
    // Not from our server: a proxy's page, say. The status says enough.
  }
  const retryAfter = Number(headers.get("Retry-After")) || null;
  return new ApiError(error.code ?? `http_${status}`, error.message ?? "", status, retryAfter);
}

/** The server names its reason when it closes (1008); anything else is a lost connection. */
function closeError({ code, reason }) {
  if (code === 1008 && reason) return new ApiError(reason, "");
  return new ApiError("offline", "The connection was lost.");
}
