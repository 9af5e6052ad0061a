// Lines and stacked bars over rounds, as SVG at the size of their place. Each has a legend that hides series, a cursor for pointer and
// keyboard, and a table that says the same.

import { axis, swatch, ticks } from "/assets/axes.js";
import { h, s, number, setText } from "/assets/dom.js";
import { MISSING } from "/assets/format.js";

const HEIGHT = 220;
const TICK = 11.5 * 0.58; // the width of a digit of the axis

/**
 * A chart that stays on the page and is given new data.
 * @param {HTMLElement} place where it goes
 * @param {{title: string, note?: string, kind?: "line"|"stack", format: (v: number) => string, tick?: (v: number) => string, xName?: string,
 *   height?: number, legend?: boolean}} options; tick formats the axis where it is not format
 */
export class Chart {
  constructor(place, options) {
    this.options = { kind: "line", xName: "round", height: HEIGHT, legend: true, ...options };
    this.data = { x: [], series: [], marks: [] };
    this.off = new Set();
    this.at = null;
    this.legend = h("div", { class: "legend", role: "group", "aria-label": `${options.title}: series shown` });
    this.svg = s("svg", { role: "img", tabindex: 0, "aria-roledescription": "chart" });
    this.tip = h("div", { class: "tip", hidden: true });
    this.said = h("div", { class: "hidden", "aria-live": "polite" });
    this.plot = h("div", { class: "plot" }, this.svg, this.tip, this.said);
    this.note = h("span", { class: "muted" }, options.note ?? "");
    this.rows = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `${options.title} as a table` });
    this.details = h("details", { class: "table-alt", ontoggle: () => this.#fillTable() }, h("summary", null, "Numbers"), this.rows);
    this.element = h(
      "figure",
      { class: "chart" },
      h("figcaption", null, h("h3", null, options.title), this.note),
      this.options.legend ? this.legend : null,
      this.plot,
      this.details,
    );
    place.append(this.element);
    this.svg.addEventListener("pointermove", (event) => this.#point(event));
    this.svg.addEventListener("pointerleave", () => this.#move(null));
    this.svg.addEventListener("blur", () => this.#move(null));
    this.svg.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.draw()).observe(this.plot);
  }

  /** Show other data: x values, series of values on them (null where there is none), and marked x values. */
  update({ x, series, marks = [], note }) {
    this.data = { x, series: series.filter((one) => one.values.some((v) => v !== null && v !== undefined)), marks };
    if (note !== undefined) setText(this.note, note);
    if (this.at !== null && this.at >= x.length) this.at = null;
    this.#drawLegend();
    this.draw();
    this.#fillTable();
  }

  get shown() {
    return this.data.series.filter((series) => !this.off.has(series.key));
  }

  #drawLegend() {
    const keys = this.data.series.map((series) => series.key + series.label).join("\n");
    if (keys === this.legendKeys) return;
    this.legendKeys = keys;
    this.legend.replaceChildren(
      ...this.data.series.map((series) =>
        h(
          "button",
          {
            type: "button",
            "aria-pressed": String(!this.off.has(series.key)),
            onclick: (event) => {
              if (this.off.has(series.key)) this.off.delete(series.key);
              else this.off.add(series.key);
              event.currentTarget.setAttribute("aria-pressed", String(!this.off.has(series.key)));
              this.draw();
            },
          },
          swatch(series, this.options.kind === "stack"),
          series.label,
        ),
      ),
    );
  }

  #summary() {
    const { x, series } = this.data;
    if (!x.length || !series.length) return `${this.options.title}: nothing measured yet`;
    const last = series.map((one) => {
      const i = one.values.findLastIndex((v) => v !== null && v !== undefined);
      return `${one.label} ${this.options.format(one.values[i])} in ${this.options.xName} ${x[i]}`;
    });
    return `${this.options.title}. Last: ${last.join(", ")}. Arrow keys move from ${this.options.xName} to ${this.options.xName}`;
  }

  draw() {
    const width = this.plot.clientWidth;
    if (!width) return;
    const { kind, format, xName } = this.options;
    const height = this.options.height;
    const { x } = this.data;
    const shown = this.shown;
    const stacked = kind === "stack";
    const totals = stacked ? x.map((_, i) => shown.reduce((sum, one) => sum + (one.values[i] ?? 0), 0)) : null;
    const values = totals ?? shown.flatMap((one) => one.values.filter((v) => v !== null && v !== undefined));
    const { low, high, values: vertical } = axis(values, Math.max(2, Math.floor(height / 48)), stacked);
    const labels = vertical.map((value) => (this.options.tick ?? format)(value));
    const left = Math.max(30, Math.ceil(Math.max(...labels.map((label) => label.length)) * TICK) + 10);
    const [right, top, bottom] = [14, 12, 34];
    const [first, last] = x.length ? [x[0], x[x.length - 1]] : [0, 1];
    const slot = (width - left - right) / Math.max(1, x.length);
    const px = stacked
      ? (value) => left + ((value - first) / Math.max(1, last - first + 1)) * (width - left - right) + slot / 2
      : (value) => left + (last === first ? 0.5 : (value - first) / (last - first)) * (width - left - right);
    const py = (value) => top + (1 - (value - low) / (high - low || 1)) * (height - top - bottom);
    this.place = { px, py, left, right, width, height, top, bottom };

    const parts = vertical.flatMap((value, i) => [
      s("line", {
        class: i ? "grid" : "axis",
        x1: left,
        x2: width - right,
        y1: Math.round(py(value)) + 0.5,
        y2: Math.round(py(value)) + 0.5,
      }),
      s("text", { x: left - 7, y: py(value) + 4, "text-anchor": "end" }, labels[i]),
    ]);
    if (x.length) {
      const wide = Math.max(2, Math.floor((width - left - right) / 46));
      const step = Math.max(1, Math.ceil(ticks(first, last, wide).step));
      for (const value of x) {
        if ((value % step === 0 && last - value >= step * 0.6) || value === last)
          parts.push(s("text", { x: px(value), y: height - bottom + 17, "text-anchor": "middle" }, value));
      }
    }
    parts.push(s("text", { x: left + (width - left - right) / 2, y: height - 2, "text-anchor": "middle" }, xName));
    for (const mark of this.data.marks) {
      if (!x.includes(mark.x)) continue;
      const end = px(mark.x) > width * 0.75;
      parts.push(s("line", { class: "mark", x1: px(mark.x), x2: px(mark.x), y1: top, y2: height - bottom }));
      parts.push(
        s("text", { class: "mark-label", x: px(mark.x) + (end ? -5 : 5), y: top + 3, "text-anchor": end ? "end" : "start" }, mark.label),
      );
    }
    if (stacked) parts.push(...this.#bars(shown, px, py, Math.max(1, Math.min(28, slot * 0.72))));
    else parts.push(...shown.map((series) => this.#line(series, px, py)));
    if (!shown.length)
      parts.push(
        s(
          "text",
          { x: width / 2, y: height / 2, "text-anchor": "middle" },
          this.data.series.length ? "every series is hidden" : "nothing measured yet",
        ),
      );
    this.cursor = s("g", null);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.setAttribute("height", height);
    this.svg.setAttribute("aria-label", this.#summary());
    this.svg.replaceChildren(...parts, this.cursor);
    this.#drawCursor();
  }

  #line(series, px, py) {
    const group = s("g", { class: `tone-${series.tone}` });
    const segments = [[]];
    series.values.forEach((value, i) => {
      if (value === null || value === undefined) segments.push([]);
      else segments.at(-1).push([px(this.data.x[i]), py(value)]);
    });
    for (const segment of segments.filter((points) => points.length > 1)) {
      group.append(
        s("path", { class: `line dash-${series.dash ?? 0}`, d: `M${segment.map((p) => p.map((v) => v.toFixed(1)).join(" ")).join("L")}` }),
      );
    }
    const points = segments.flat();
    if (points.length <= 25) group.append(...points.map(([cx, cy]) => s("circle", { class: "point", cx, cy, r: 3 })));
    else group.append(...segments.filter((one) => one.length === 1).map(([[cx, cy]]) => s("circle", { class: "point", cx, cy, r: 2 })));
    return group;
  }

  #bars(shown, px, py, wide) {
    return this.data.x.flatMap((value, i) => {
      let sum = 0;
      return shown
        .map((series) => {
          const part = series.values[i] ?? 0;
          const [from, to] = [py(sum), py(sum + part)];
          sum += part;
          return part > 0
            ? s("rect", { class: `bar tone-${series.tone}`, x: px(value) - wide / 2, y: to, width: wide, height: Math.max(0.5, from - to) })
            : null;
        })
        .filter(Boolean);
    });
  }

  #point(event) {
    if (!this.data.x.length || !this.place) return;
    const at = event.clientX - this.svg.getBoundingClientRect().left;
    const distance = this.data.x.map((value) => Math.abs(this.place.px(value) - at));
    this.#move(distance.indexOf(Math.min(...distance)));
  }

  #key(event) {
    const last = this.data.x.length - 1;
    if (last < 0) return;
    const now = this.at ?? last + 1;
    const next = {
      ArrowLeft: Math.max(0, now - 1),
      ArrowRight: Math.min(last, this.at === null ? 0 : now + 1),
      Home: 0,
      End: last,
      Escape: null,
    }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    this.#move(next, true);
  }

  #move(at, aloud = false) {
    if (at === this.at) return;
    this.at = at;
    this.#drawCursor();
    if (aloud && at !== null) setText(this.said, this.tip.innerText.replaceAll("\n", " "));
  }

  #drawCursor() {
    if (!this.cursor) return;
    const { x } = this.data;
    if (this.at === null || this.at >= x.length) {
      this.cursor.replaceChildren();
      this.tip.hidden = true;
      return;
    }
    const { px, py, width, height, top, bottom } = this.place;
    const stacked = this.options.kind === "stack";
    const at = px(x[this.at]);
    const rows = this.shown.filter((series) => series.values[this.at] !== null && series.values[this.at] !== undefined);
    this.cursor.replaceChildren(
      s("line", { class: "cursor", x1: at, x2: at, y1: top, y2: height - bottom }),
      ...(stacked
        ? []
        : rows.map((series) => s("circle", { class: `cursor-point tone-${series.tone}`, cx: at, cy: py(series.values[this.at]), r: 4.5 }))),
    );
    const total =
      stacked && rows.length > 1
        ? [
            h(
              "li",
              null,
              h("span", null, "together"),
              h("span", null, this.options.format(rows.reduce((sum, one) => sum + one.values[this.at], 0))),
            ),
          ]
        : [];
    this.tip.replaceChildren(
      h("strong", null, `${this.options.xName} ${x[this.at]}`),
      h(
        "ul",
        null,
        rows.length
          ? rows.map((series) =>
              h(
                "li",
                null,
                swatch(series, stacked),
                h("span", null, series.label),
                h("span", null, this.options.format(series.values[this.at])),
              ),
            )
          : h("li", { class: "muted" }, "nothing measured"),
        total,
      ),
    );
    this.tip.hidden = false;
    const room = this.tip.offsetWidth;
    const side = at + 14 + room > width ? at - 14 - room : at + 14;
    this.tip.style.transform = `translate(${Math.max(0, Math.min(side, width - room))}px, ${top}px)`;
  }

  #fillTable() {
    if (!this.details.open) return;
    const { x, series } = this.data;
    const heads = [this.options.xName, ...series.map((one) => one.label)];
    this.rows.replaceChildren(
      h(
        "table",
        null,
        h("caption", { class: "hidden" }, this.options.title),
        h(
          "thead",
          null,
          h(
            "tr",
            null,
            heads.map((head, i) => h("th", { scope: "col", class: i ? "num" : null }, head)),
          ),
        ),
        h(
          "tbody",
          null,
          x.map((value, i) =>
            h(
              "tr",
              null,
              h("th", { scope: "row" }, value),
              series.map((one) => h("td", { class: "num" }, number(one.values[i], this.options.format))),
            ),
          ),
        ),
      ),
    );
    if (!x.length) this.rows.replaceChildren(h("p", { class: "quiet-empty" }, MISSING));
  }
}
