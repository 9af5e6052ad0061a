// Building elements. Whatever comes from the server becomes text: nothing here or elsewhere parses data as HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) {
      if (typeof value !== "function") throw new TypeError(`${name}: handlers are functions, never text`);
      element.addEventListener(name.slice(2), value);
    } else if (name === "href" && !/^([/?](?!\/)|#)/.test(value)) {
      throw new TypeError("links stay on this host");
    } else {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An HTML element; children are nodes, or values shown as text. */
export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** An SVG element. */
export function s(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** A number for people that keeps the exact value for machines. */
export function number(value, format) {
  if (value === null || value === undefined || Number.isNaN(value)) return h("span", { class: "missing" }, "–");
  return h("data", { value }, format(value));
}

/** Set an element's text, touching the page only where it differs. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A table with a caption for screen readers; rows of cells, each a node or a value. The first cell of a row is its heading. */
export function table(caption, columns, rows, attributes = {}) {
  const heads = columns.map((column, i) => h("th", { scope: "col", class: i ? "num" : null }, column));
  const body = rows.map((cells) =>
    h(
      "tr",
      null,
      cells.map((cell, i) => h(i ? "td" : "th", i ? { class: "num" } : { scope: "row" }, cell)),
    ),
  );
  return h("table", attributes, h("caption", { class: "hidden" }, caption), h("thead", null, h("tr", null, heads)), h("tbody", null, body));
}

/** A name that may break after its dots and underscores and between its words. */
export const breakable = (text) =>
  h(
    "span",
    null,
    String(text)
      .split(/(?<=[._])|(?<=[a-z])(?=[A-Z])/)
      .flatMap((part, i) => (i ? [h("wbr"), part] : [part])),
  );

export const $ = (id) => document.getElementById(id);
