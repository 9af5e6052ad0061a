// What the strategy reports about itself, the notes, and the configuration.

import { $, breakable, h, setText } from "/assets/dom.js";
import { clock, count, lastPart, plain, score, short, spans, words } from "/assets/format.js";
import { Chart } from "/assets/chart.js";
import { isPerClient } from "/assets/maps.js";

const LEADERS = [
  ["teacher-score", "teacher", 1, 0],
  ["student-score", "student", 2, 1],
  ["score-by-examples", "weights by examples", 7, 2],
];
const SPOKEN = new Set([...LEADERS.map(([key]) => key), "student-leads", "score"]);

/** A nested mapping as dotted keys and plain values. */
export function flat(value, prefix = "") {
  if (value !== null && typeof value === "object" && !Array.isArray(value) && Object.keys(value).length) {
    return Object.entries(value).flatMap(([key, item]) => flat(item, prefix ? `${prefix}.${key}` : key));
  }
  return [[prefix, typeof value === "string" ? value : JSON.stringify(value)]];
}

const keyTable = (name, pairs) =>
  h(
    "div",
    { class: "scroll" },
    h(
      "table",
      { class: "keys" },
      h("caption", { class: "hidden" }, name),
      h("thead", { class: "hidden" }, h("tr", null, h("th", { scope: "col" }, "Key"), h("th", { scope: "col" }, "Value"))),
      h(
        "tbody",
        null,
        pairs.map(([key, value]) => h("tr", null, h("th", { scope: "row" }, breakable(key)), h("td", null, breakable(value)))),
      ),
    ),
  );

export class Strategy {
  constructor() {
    this.body = $("strategy-body");
    this.large = h("div", { class: "columns" });
    this.small = h("div", { class: "small-charts" });
    this.none = h("p", { class: "quiet-empty" });
    this.settings = h("div", { class: "below" });
    this.body.append(this.none, this.large, this.small, this.settings);
    this.charts = new Map();
  }

  #chart(place, key, options) {
    if (!this.charts.has(key)) {
      const chart = new Chart(place, options);
      chart.element.dataset.chart = key;
      this.charts.set(key, chart);
    }
    return this.charts.get(key);
  }

  update(run) {
    const settings = run.config.server?.strategy ?? {};
    const rounds = run.rounds.filter((record) => record.round_index > 0);
    const x = rounds.map((record) => record.round_index);
    const keys = [...new Set(rounds.flatMap((record) => Object.keys(record.diagnostics)))].filter((key) => !isPerClient(key));
    const of = (key) => rounds.map((record) => record.diagnostics[key] ?? null);
    const led = rounds.filter((record) => record.diagnostics["student-leads"]).map((record) => record.round_index);
    setText(
      $("strategy-note"),
      [
        settings._target_ ? lastPart(settings._target_) : "",
        keys.includes("teacher-score")
          ? led.length
            ? `the student led in ${led.length === 1 ? "round" : "rounds"} ${spans(led)}`
            : "the teacher has led so far"
          : "",
      ]
        .filter(Boolean)
        .join("; "),
    );
    if (keys.some((key) => key === "teacher-score" || key === "student-score")) {
      this.#chart(this.large, "teacher-student", {
        title: "Teacher against student",
        note: "score on the validation rows",
        format: score,
        tick: short,
      }).update({ x, series: LEADERS.map(([key, label, tone, dash]) => ({ key, label, tone, dash, values: of(key) })) });
    }
    const alphas = keys.filter((key) => key.startsWith("alpha-"));
    if (alphas.length) {
      this.#chart(this.large, "alphas", { title: "Alphas", note: "how much each feature counts", format: score, tick: short }).update({
        x,
        series: alphas.map((key, i) => ({ key, label: words(key.slice(6)), tone: (i % 8) + 1, dash: i % 4, values: of(key) })),
      });
    }
    const others = keys.filter(
      (key) => !key.startsWith("alpha-") && !(SPOKEN.has(key) && (key !== "score" || keys.includes("teacher-score"))),
    );
    others.forEach((key, i) => {
      const values = of(key);
      const last = values.findLast((value) => value !== null);
      this.#chart(this.small, `of ${key}`, { title: words(key), format: plain, height: 130, legend: false }).update({
        x,
        series: [{ key, label: words(key), tone: (i % 8) + 1, values }],
        note: plain(last),
      });
    });
    this.none.hidden = keys.length > 0;
    setText(
      this.none,
      rounds.length
        ? "This strategy reports no numbers of its own; its weights are in the map above."
        : "The strategy reports after the first round.",
    );
    const told = JSON.stringify(settings);
    if (told !== this.told) {
      this.told = told;
      const pairs = flat(settings).filter(([key]) => key);
      this.settings.replaceChildren(
        ...(pairs.length
          ? [h("details", { class: "fold" }, h("summary", null, `Settings (${pairs.length})`), keyTable("Settings of the strategy", pairs))]
          : []),
      );
    }
  }
}

export class Notes {
  constructor() {
    this.all = false;
  }

  update(run) {
    const told = run.rounds.flatMap((record) => record.notes.map((text) => ({ round: record.round_index, text, time: null })));
    const known = new Set(told.map((note) => note.text));
    const times = new Map(run.notes.filter((note) => note.time !== null).map((note) => [note.text, note.time]));
    for (const note of told) note.time = times.get(note.text) ?? null;
    const lost = new Set(
      run.rounds.flatMap((record) =>
        record.clients
          .filter((client) => client.status !== "ok")
          .map((client) => {
            const code = client.status === "rejected" && client.code ? ` (${client.code})` : "";
            return `client ${client.client_id} is left out of round ${record.round_index}${code}: ${client.reason}`;
          }),
      ),
    ); // which stand among the clients
    const extra = run.notes.filter((note) => !known.has(note.text) && !lost.has(note.text));
    const notes = [...told, ...extra]
      .map((note, i) => ({ ...note, i }))
      .sort((a, b) => (b.round ?? run.roundsDone + 1) - (a.round ?? run.roundsDone + 1) || (b.time ?? 0) - (a.time ?? 0) || b.i - a.i);
    const key = `${notes.length} ${this.all} ${notes[0]?.text}`;
    if (key === this.key) return;
    this.key = key;
    const place = $("note-list");
    if (!notes.length) {
      place.replaceChildren(h("p", { class: "quiet-empty" }, "Nothing was said."));
      return;
    }
    const shown = this.all ? notes : notes.slice(0, 40);
    const when = (note) =>
      [!note.round ? null : `round ${note.round}`, note.time === null ? null : clock(note.time)].filter(Boolean).join(", ");
    const list = h(
      "ul",
      { class: "note-list", tabindex: 0, "aria-label": "Notes, the latest first" },
      shown.map((note) => h("li", null, h("span", { class: "when" }, when(note)), h("span", { class: "text" }, note.text))),
    );
    const more =
      notes.length > 40
        ? h(
            "button",
            {
              type: "button",
              class: "below",
              onclick: () => {
                this.all = !this.all;
                this.update(run);
              },
            },
            this.all ? "Show the latest 40" : `Show all ${count(notes.length)}`,
          )
        : null;
    place.replaceChildren(...[list, more].filter(Boolean));
  }
}

export class Setup {
  update(run) {
    const told = JSON.stringify([run.config, run.versions]);
    if (told === this.told) return;
    this.told = told;
    const parts = [
      ["Configuration", flat(run.config)],
      ["Software", flat(run.versions.software ?? {})],
      ["Machine", flat(run.versions.machine ?? {})],
    ]
      .map(([name, pairs]) => [name, pairs.filter(([key]) => key)])
      .filter(([, pairs]) => pairs.length);
    $("setup-body").replaceChildren(
      ...(parts.length
        ? parts.map(([name, pairs]) =>
            h("details", { class: "fold" }, h("summary", null, `${name} (${pairs.length} keys)`), keyTable(name, pairs)),
          )
        : [h("p", { class: "quiet-empty" }, "Not written yet.")]),
    );
  }
}
