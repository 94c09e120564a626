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
  busy: ["The server is busy", "Many clicks are waiting. Try again in a few seconds.", "retry"],
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
  truncated: [
    "This file is incomplete",
    "Part of the image data is missing, perhaps because copying was interrupted. Copy it again.",
    "open",
  ],
  bad_mask: ["A result could not be shown", "Undo the last step and try again.", null],
  session_state: ["That is not possible now", "", null],
  no_volume: ["There is no scan yet", "Open one first.", "open"],
  timeout: ["That took too long", "The server gave up on this step; nothing was changed.", "retry"],
  internal: ["Something went wrong on the server", "Nothing was changed. Try again.", "retry"],
};

const SYNONYMS = {
  volume_read: "unreadable",
  volume_read_error: "unreadable",
  geometry: "unreadable",
  geometry_error: "unreadable",
  unsupported_media_type: "unreadable",
  unsupported: "unreadable",
  payload_too_large: "too_large",
  too_many_voxels: "too_large",
  lease_expired: "session_expired",
  server_busy: "busy",
  queue_full: "busy",
  internal_error: "internal",
  predict_timeout: "timeout",
  not_loaded: "no_volume",
  http_401: "unauthorized",
  http_410: "session_expired",
  http_413: "too_large",
  http_415: "unreadable",
  http_422: "unreadable",
  http_503: "busy",
  http_500: "internal",
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
