/** Small helpers for the page; text goes in as text, never as HTML. */

const SVG = "http://www.w3.org/2000/svg";

export function byId(id) {
  return document.getElementById(id);
}

/**
 * @param {string} name tag
 * @param {object} attributes `onclick` and the like become listeners; false leaves one out
 * @param {...(Node | string)} children
 */
export function element(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function svgElement(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

export function icon(name) {
  return svgElement(
    "svg",
    { "aria-hidden": "true" },
    svgElement("use", { href: `viewer/icons.svg#${name}` }),
  );
}

/** A button with an icon alone, named for those who do not see it. */
export function iconButton(name, label, onclick, attributes = {}) {
  return element(
    "button",
    { type: "button", title: label, "aria-label": label, onclick, ...attributes },
    icon(name),
  );
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}
