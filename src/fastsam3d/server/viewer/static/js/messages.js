/** The server's error codes in words that a clinician understands, each with a way out. */

/**
 * @typedef {object} Message
 * @property {string} title
 * @property {string} text
 * @property {"restart" | "retry" | "key" | "open" | null} way what the button offers
 */

const MESSAGES = {
  offline: [
    "The server does not answer",
    "It may have been stopped, or the network is down. Your work on the server is kept for a minute.",
    "retry",
  ],
  session_expired: [
    "Your session has ended",
    "Nothing happened for a while, so the server freed the memory. Your scan and prompts are still in this window and can be brought back.",
    "restart",
  ],
  at_capacity: [
    "All places are taken",
    "Other people are using this server right now. A place becomes free when one of them stops.",
    "retry",
  ],
  busy: ["The server is busy", "Many clicks are waiting. Try again in a few seconds.", null],
  unauthorized: ["This server asks for a key", "Enter the access key to go on.", "key"],
  too_large: [
    "This scan is too large for the server",
    "Crop it, store it with fewer bits, or ask whoever runs the server to raise its limit.",
    "open",
  ],
  unreadable: [
    "This file could not be read",
    "It may be damaged, incomplete, or not a scan. NIfTI, NRRD, MHA and DICOM can be opened.",
    "open",
  ],
  bad_mask: ["A result could not be shown", "Undo the last step and try again.", null],
  too_many_files: ["Too many files", "Choose the files of one series.", "open"],
  no_volume: ["There is no scan yet", "Open one first.", "open"],
  bad_state: ["That is not possible now", "", null],
  bad_prompt: ["That mark cannot be used", "", null],
  superseded: ["Replaced by a newer click", "", null],
  timeout: ["That took too long", "The server gave up on this step; nothing was changed.", null],
  too_slow: ["Sending took too long", "The connection is slow or was interrupted.", "retry"],
  out_of_memory: [
    "The server has no memory left for this",
    "Close objects or other windows, or try again when others have finished.",
    null,
  ],
  engine_crashed: [
    "The computation broke off",
    "The engine is starting again, which takes a few seconds; nothing of your work is lost. Click again.",
    null,
  ],
  internal: ["Something went wrong on the server", "Nothing was changed. Try again.", null],
};

/** Codes, and bare HTTP statuses of proxies, that mean the same to people. */
const SYNONYMS = {
  volume_unreadable: "unreadable",
  bad_geometry: "unreadable",
  unsupported_type: "unreadable",
  session_closed: "session_expired",
  volumes_full: "at_capacity",
  stopping: "offline",
  engine_down: "offline",
  model_failed: "internal",
  http_401: "unauthorized",
  http_410: "session_expired",
  http_413: "too_large",
  http_502: "offline",
  http_503: "busy",
  http_504: "timeout",
};

/** @returns {Message & {detail: string}} */
export function explain(error) {
  const code = error.code ?? "page";
  const known = MESSAGES[SYNONYMS[code] ?? code];
  const detail = error.message ?? "";
  if (!known) return { title: "That did not work", text: detail, detail: "", way: null };
  const [title, text, way] = known;
  return { title, text: text || detail, detail: text ? detail : "", way };
}

/** Failures that nobody needs to hear of. */
export function isSilent(error) {
  return error.code === "superseded" || error.code === "cancelled";
}

/** Whether the session as a whole is in trouble, not one request. */
export function isFatal(error) {
  const { way } = explain(error);
  const code = SYNONYMS[error.code] ?? error.code;
  return way === "restart" || way === "key" || code === "offline" || code === "at_capacity";
}

const SERIES = /([\d.]{9,64}) \(([^()]*), (\d+) files\)/g;
const TIMES = /choose a time point, time=0 to time=(\d+)/;

/**
 * What the server wants to be told before it can read the files.
 * @returns {{series: {uid: string, label: string}[]} | {times: number} | null}
 */
export function questionIn({ message }) {
  const times = TIMES.exec(message);
  if (times) return { times: Number(times[1]) + 1 };
  const series = [...message.matchAll(SERIES)].map(([, uid, about, count]) => ({
    uid,
    label: `${about}, ${count} images`,
  }));
  return series.length > 1 ? { series } : null;
}
