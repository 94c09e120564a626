/** What the page says by itself: progress, passing messages, dialogs. */

import { byId, element, icon, iconButton } from "./dom.js";
import { explain } from "./messages.js";

const TOAST_MS = 9000;

/** Show what is being done; `fraction` null means that nobody knows how long. */
export function showProgress(text, fraction = null, onCancel = null) {
  byId("progress").hidden = false;
  byId("progress-text").textContent = text;
  const bar = byId("progress-bar");
  bar.hidden = fraction === null;
  if (fraction !== null) bar.value = fraction;
  const cancel = byId("progress-cancel");
  cancel.hidden = !onCancel;
  cancel.onclick = onCancel;
}

export function hideProgress() {
  byId("progress").hidden = true;
}

/** A message that goes by itself; `kind` is "warning" or "info". */
export function toast(title, text = "", kind = "warning") {
  const close = () => node.remove();
  const node = element(
    "div",
    { class: `toast ${kind}` },
    icon(kind === "info" ? "info" : "warning"),
    element("div", {}, element("b", {}, title), text),
    iconButton("close", "Close", close, { class: "icon-button" }),
  );
  const toasts = byId("toasts");
  [...toasts.children].filter((other) => other.textContent === node.textContent).forEach((n) => n.remove());
  toasts.append(node);
  while (toasts.children.length > 3) toasts.firstChild.remove();
  setTimeout(close, TOAST_MS);
}

/** Messages about what is no longer on the screen go. */
export function clearToasts() {
  byId("toasts").replaceChildren();
}

/** Say in passing what failed. */
export function toastError(error) {
  const { title, text, detail } = explain(error);
  toast(title, [text, detail].filter(Boolean).join(" "));
}

/**
 * Stop and say what failed, with ways out.
 * @param {Error} error
 * @param {{label: string, run: () => void, primary?: boolean}[]} ways
 */
export function showTrouble(error, ways) {
  const { title, text, detail } = explain(error);
  const dialog = byId("trouble-dialog");
  byId("trouble-title").textContent = title;
  byId("trouble-text").textContent = text;
  byId("trouble-detail").textContent = detail;
  byId("trouble-actions").replaceChildren(
    ...ways.map(({ label, run, primary }) =>
      element(
        "button",
        {
          class: primary ? "button primary" : "button",
          autofocus: Boolean(primary),
          onclick: () => {
            dialog.close();
            run();
          },
        },
        label,
      ),
    ),
  );
  if (!dialog.open) dialog.showModal();
}

/**
 * Ask which of several things is meant.
 * @param {{label: string, value: string}[]} options
 * @returns {Promise<string | null>} null when the dialog was closed
 */
export function choose(title, options) {
  const dialog = byId("choice-dialog");
  byId("choice-title").textContent = title;
  return new Promise((resolve) => {
    let chosen = null;
    const button = ({ label, value }) => {
      const onclick = () => {
        chosen = value;
        dialog.close();
      };
      return element("button", { class: "button", onclick }, label);
    };
    byId("choice-options").replaceChildren(...options.map(button));
    dialog.addEventListener("close", () => resolve(chosen), { once: true });
    dialog.showModal();
  });
}

/** Ask for the server's key; resolves with what was typed. */
export function askForKey(wasRefused) {
  const dialog = byId("key-dialog");
  const input = byId("key-input");
  byId("key-error").hidden = !wasRefused;
  input.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(input.value.trim()), { once: true });
  });
}

/** Buttons marked data-close close their dialog, as does a click beside it. */
export function wireDialogs() {
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => {
      const isBeside = event.target === dialog && dialog.id !== "key-dialog";
      if (isBeside || event.target.closest("[data-close]")) dialog.close();
    });
  }
}
