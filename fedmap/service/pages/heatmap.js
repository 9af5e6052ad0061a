// A map of rows and rounds. One path per shade, so that 200 clients and 500 rounds stay quick; a cursor for pointer and keyboard, and a
// table that says the same.

import { h, s, number, setText } from "/assets/dom.js";
import { ticks } from "/assets/axes.js";

const SHADES = 24;
let made = 0;

const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

/** @param {HTMLElement} place where it goes; @param {{title: string, rowName: string}} options */
export class Heatmap {
  constructor(place, options) {
    this.options = options;
    this.pattern = `lost-${(made += 1)}`;
    this.data = null;
    this.at = null;
    this.svg = s("svg", { role: "img", tabindex: 0, "aria-roledescription": "heat map" });
    this.area = h("div", { class: "plot" }, this.svg);
    this.readout = h("p", { class: "readout muted", "aria-live": "polite" });
    this.scale = h("div", { class: "scale" });
    this.rows = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `${options.title} as a table` });
    this.details = h("details", { class: "table-alt", ontoggle: () => this.#fillTable() }, h("summary", null, "Numbers"), this.rows);
    this.element = h("figure", { class: "chart heat" }, this.scale, this.area, this.readout, this.details);
    place.append(this.element);
    this.svg.addEventListener("pointermove", (event) => this.#point(event));
    this.svg.addEventListener("pointerleave", () => this.#move(null));
    this.svg.addEventListener("blur", () => this.#move(null));
    this.svg.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.draw()).observe(this.area);
  }

  /**
   * Show other data.
   * @param {{label: string, rows: {key: string, label: string}[], columns: number[], value: (row: number, column: number) => number|null,
   *   lost?: (row: number, column: number) => string|null, format: (v: number) => string, domain?: [number, number]}} data
   */
  update(data) {
    this.data = data;
    if (this.at && (this.at[0] >= data.rows.length || this.at[1] >= data.columns.length)) this.at = null;
    this.draw();
    this.#fillTable();
  }

  draw() {
    const width = this.area.clientWidth;
    if (!width || !this.data) return;
    const { rows, columns, value, lost, format, label } = this.data;
    const found = rows.flatMap((_, r) => columns.map((_, c) => value(r, c))).filter(known);
    let [low, high] = this.data.domain ?? [Math.min(...found, Infinity), Math.max(...found, -Infinity)];
    if (!found.length) [low, high] = [0, 1];
    if (low === high) [low, high] = low > 0 ? [0, high] : [low, low + 1];
    const longest = Math.max(...rows.map((row) => row.label.length), 3);
    const left = Math.min(Math.ceil(longest * 6.9) + 12, Math.floor(width * 0.38));
    const [top, bottom, right] = [4, 34, 4];
    const tall = Math.max(4, Math.min(28, Math.floor(640 / Math.max(1, rows.length))));
    const wide = (width - left - right) / Math.max(1, columns.length);
    const cell = Math.min(wide, 120);
    const height = top + bottom + tall * rows.length;
    this.place = { left, top, cell, tall };
    const gap = tall > 9 && cell > 9 ? 1 : 0;
    const shades = Array.from({ length: SHADES }, () => []);
    const losses = [];
    const texts = [];
    const written = cell >= 40 && tall >= 18;
    rows.forEach((_, r) =>
      columns.forEach((_, c) => {
        const box = `M${(left + c * cell).toFixed(2)} ${top + r * tall}h${Math.max(1, cell - gap).toFixed(2)}v${tall - gap}h-${Math.max(1, cell - gap).toFixed(2)}z`;
        if (lost?.(r, c)) losses.push(box);
        const number = value(r, c);
        if (!known(number)) return;
        const share = Math.max(0, Math.min(1, (number - low) / (high - low)));
        shades[Math.round(share * (SHADES - 1))].push(box);
        if (written)
          texts.push(
            s(
              "text",
              {
                class: share > 0.66 ? "in-cell high" : share > 0.48 ? "in-cell middle" : "in-cell",
                x: left + (c + 0.5) * cell,
                y: top + (r + 0.5) * tall + 4,
              },
              format(number),
            ),
          );
      }),
    );
    const parts = [
      s(
        "defs",
        null,
        s(
          "pattern",
          { id: this.pattern, width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
          s("rect", { width: 6, height: 6, class: "lost-ground" }),
          s("line", { x1: 0, x2: 0, y1: 0, y2: 6, class: "lost-line" }),
        ),
      ),
    ];
    shades.forEach((boxes, i) => {
      if (!boxes.length) return;
      const path = s("path", { class: "cell", d: boxes.join("") });
      path.style.setProperty("--level", `${((100 * i) / (SHADES - 1)).toFixed(1)}%`);
      parts.push(path);
    });
    const fine = Math.min(tall, cell) >= 8; // a hatch needs some room
    const lostFill = fine ? { fill: `url(#${this.pattern})` } : { class: "lost" };
    if (losses.length) parts.push(s("path", { ...lostFill, d: losses.join("") }));
    const every = [1, 2, 5, 10, 20, 50, 100].find((step) => step * tall >= 13) ?? 200;
    const fits = Math.floor((left - 12) / 6.6);
    rows.forEach((row, r) => {
      if (r % every === 0)
        parts.push(
          s(
            "text",
            { x: left - 7, y: top + (r + 0.5) * tall + 4, "text-anchor": "end" },
            row.label.length > fits ? `${row.label.slice(0, fits - 1)}…` : row.label,
          ),
        );
    });
    if (columns.length) {
      const last = columns.at(-1);
      const step = Math.max(1, Math.ceil(ticks(columns[0], last, Math.max(2, Math.floor((cell * columns.length) / 40))).step));
      columns.forEach((round, c) => {
        if ((round % step === 0 && last - round >= step * 0.6) || c === columns.length - 1)
          parts.push(s("text", { x: left + (c + 0.5) * cell, y: height - bottom + 16, "text-anchor": "middle" }, round));
      });
      parts.push(s("text", { x: left + (cell * columns.length) / 2, y: height - 2, "text-anchor": "middle" }, "round"));
    }
    this.focus = s("rect", { class: "focus", width: cell, height: tall, visibility: "hidden" });
    parts.push(...texts, this.focus);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.setAttribute("height", height);
    this.svg.setAttribute(
      "aria-label",
      `${this.options.title}: ${label}, ${rows.length} ${this.options.rowName}s by ${columns.length} rounds. Arrow keys move from cell to cell`,
    );
    this.svg.replaceChildren(...parts);
    const key = [
      h("span", null, label),
      h("span", null, format(low)),
      h("span", { class: "ramp", "aria-hidden": "true" }),
      h("span", null, format(high)),
    ];
    if (losses.length)
      key.push(
        s("svg", { viewBox: "0 0 16 12", "aria-hidden": "true" }, s("rect", { ...lostFill, width: 16, height: 12 })),
        h("span", null, "failed or rejected"),
      );
    this.scale.replaceChildren(...key);
    this.#drawFocus();
  }

  #cellAt(event) {
    const box = this.svg.getBoundingClientRect();
    const c = Math.floor((event.clientX - box.left - this.place.left) / this.place.cell);
    const r = Math.floor((event.clientY - box.top - this.place.top) / this.place.tall);
    return r >= 0 && c >= 0 && r < this.data.rows.length && c < this.data.columns.length ? [r, c] : null;
  }

  #point(event) {
    if (this.data && this.place) this.#move(this.#cellAt(event));
  }

  #key(event) {
    if (!this.data?.rows.length || !this.data.columns.length) return;
    const [r, c] = this.at ?? [0, 0];
    const [lastRow, lastColumn] = [this.data.rows.length - 1, this.data.columns.length - 1];
    const next = {
      ArrowLeft: [r, Math.max(0, c - 1)],
      ArrowRight: [r, Math.min(lastColumn, c + 1)],
      ArrowUp: [Math.max(0, r - 1), c],
      ArrowDown: [Math.min(lastRow, r + 1), c],
      Home: [r, 0],
      End: [r, lastColumn],
      Escape: null,
    }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    this.#move(this.at ? next : next && [0, lastColumn]);
  }

  #move(at) {
    this.at = at;
    this.#drawFocus();
  }

  #drawFocus() {
    if (!this.focus) return;
    if (!this.at) {
      this.focus.setAttribute("visibility", "hidden");
      setText(this.readout, "Point at a cell, or move from cell to cell with the arrow keys.");
      return;
    }
    const [r, c] = this.at;
    const { rows, columns, value, lost, format, label } = this.data;
    this.focus.setAttribute("x", this.place.left + c * this.place.cell);
    this.focus.setAttribute("y", this.place.top + r * this.place.tall);
    this.focus.setAttribute("visibility", "visible");
    const number = value(r, c);
    const text = lost?.(r, c) ?? (known(number) ? `${label} ${format(number)}` : "nothing measured");
    setText(this.readout, `Round ${columns[c]}, ${rows[r].label}: ${text}`);
  }

  #fillTable() {
    if (!this.details.open || !this.data) return;
    const { rows, columns, value, lost, format, label } = this.data;
    this.rows.replaceChildren(
      h(
        "table",
        null,
        h("caption", { class: "hidden" }, `${this.options.title}: ${label}`),
        h(
          "thead",
          null,
          h(
            "tr",
            null,
            h("th", { scope: "col" }, this.options.rowName),
            columns.map((round) => h("th", { scope: "col", class: "num" }, round)),
          ),
        ),
        h(
          "tbody",
          null,
          rows.map((row, r) =>
            h(
              "tr",
              null,
              h("th", { scope: "row" }, row.label),
              columns.map((_, c) => h("td", { class: "num" }, lost?.(r, c) ? "left out" : number(value(r, c), format))),
            ),
          ),
        ),
      ),
    );
  }
}
