// Curves of the global model, F1 by label, and what rounds cost.

import { $, h, number, setText, table } from "/assets/dom.js";
import { bytes, count, duration, score, short } from "/assets/format.js";
import { Chart } from "/assets/chart.js";
import { Heatmap } from "/assets/heatmap.js";
import { bytesOf, trainLoss } from "/assets/run.js";

const sum = (values) => values.reduce((total, value) => total + value, 0);

/** The series of one score over rounds: validation solid, test dashed. */
export function scoreSeries(rounds, name) {
  const of = (split) => rounds.map((record) => record[split]?.[name] ?? null);
  const tuned = rounds.some((record) => record.validation_tuned);
  if (name === "loss") {
    return [
      { key: "validation", label: "validation", tone: 1, values: of("validation") },
      { key: "test", label: "test", tone: 2, dash: 1, values: of("test") },
      { key: "train", label: "clients' training", tone: 7, dash: 2, values: rounds.map(trainLoss) },
    ];
  }
  const where = tuned ? " at 0.5" : "";
  return [
    { key: "tuned", label: "validation, tuned", tone: 3, values: of("validation_tuned") },
    { key: "validation", label: `validation${where}`, tone: 1, values: of("validation") },
    { key: "test", label: `test${where}`, tone: 2, dash: 1, values: of("test") },
    { key: "clients", label: "clients' own", tone: 7, dash: 2, values: of("clients_validation") },
  ];
}

export class Scores {
  constructor() {
    const place = $("score-charts");
    this.charts = [
      ["macro_f1", "Macro-F1"],
      ["micro_f1", "Micro-F1"],
      ["loss", "Loss"],
    ].map(([name, title]) => {
      const chart = new Chart(place, { title, format: score, tick: short });
      if (name !== "loss") chart.off.add("clients");
      chart.element.dataset.chart = name;
      return { name, chart };
    });
  }

  update(run) {
    const { rounds, best } = run;
    const x = rounds.map((record) => record.round_index);
    const scored = rounds.some((record) => record.validation || record.test);
    for (const { name, chart } of this.charts) {
      if (rounds.length && !scored) chart.off.delete("clients"); // then there is nothing else to see
      chart.update({
        x,
        series: scoreSeries(rounds, name),
        marks: best && scored && rounds.length > 1 ? [{ x: best.round_index, label: "best" }] : [],
      });
    }
  }
}

export class Labels {
  constructor() {
    this.map = new Heatmap($("label-map"), { title: "F1 by label and round", rowName: "label" });
  }

  update(run) {
    const rounds = run.rounds.filter((record) => record.label_f1?.length);
    const final = run.final?.labels ?? [];
    $("label-map").hidden = !rounds.length;
    setText(
      $("labels-note"),
      rounds.length
        ? `The map: validation rows, round by round${rounds.some((r) => r.validation_tuned) ? ", at thresholds tuned there" : ""}. The table: test rows, the chosen model, when the run has ended.`
        : final.length
          ? "Test rows, the chosen model."
          : "",
    );
    if (rounds.length) {
      this.map.update({
        label: "F1",
        domain: [0, 1],
        format: (value) => value.toFixed(2),
        columns: rounds.map((record) => record.round_index),
        rows: run.labels.map((label, i) => ({ key: String(i), label })),
        value: (r, c) => rounds[c].label_f1[r],
      });
    }
    const place = $("label-table");
    if (!final.length) {
      place.replaceChildren(
        h(
          "p",
          { class: "quiet-empty" },
          run.active || rounds.length ? "Test scores by label follow when the run has ended." : "No scores by label were measured.",
        ),
      );
      return;
    }
    const ordered = [...final].sort((a, b) => b.support - a.support || a.label.localeCompare(b.label));
    const tuned = final.some((row) => row.threshold !== null);
    const meter = (row) => {
      const fill = h("span", { class: "fill tone-1" });
      fill.style.setProperty("--share", `${100 * row.f1}%`);
      return h("div", { class: "meter" }, h("span", { class: "track", "aria-hidden": "true" }, fill), number(row.f1, score));
    };
    const rows = ordered.map((row) => [
      row.label,
      meter(row),
      number(row.precision, score),
      number(row.recall, score),
      number(row.support, count),
      ...(tuned ? [number(row.threshold, score)] : []),
    ]);
    const columns = ["Label", "F1", "Precision", "Recall", "Rows", ...(tuned ? ["Threshold"] : [])];
    place.replaceChildren(
      h(
        "div",
        { class: "scroll tall", tabindex: 0, role: "region", "aria-label": "Scores by label on test rows" },
        table("Scores by label on test rows", columns, rows, { id: "labels-final" }),
      ),
    );
  }
}

const PHASES = { train: "clients train", aggregate: "aggregate", evaluate: "evaluate" };

export class Cost {
  constructor() {
    this.bytes = new Chart($("cost-charts"), { title: "Bytes per round", kind: "stack", format: bytes });
    this.seconds = new Chart($("cost-charts"), { title: "Seconds per round", kind: "stack", format: duration });
  }

  update(run) {
    const rounds = run.rounds.filter((record) => record.round_index > 0);
    const x = rounds.map((record) => record.round_index);
    this.bytes.update({
      x,
      series: [
        { key: "up", label: "clients to server", tone: 1, values: rounds.map((record) => bytesOf(record, "bytes_up")) },
        { key: "down", label: "server to clients", tone: 3, values: rounds.map((record) => bytesOf(record, "bytes_down")) },
      ],
    });
    const phases = [...new Set(rounds.flatMap((record) => Object.keys(record.seconds)))];
    this.seconds.update({
      x,
      series: phases.map((phase, i) => ({
        key: phase,
        label: PHASES[phase] ?? phase,
        tone: [1, 2, 4, 3, 5, 6, 7, 8][i % 8],
        values: rounds.map((record) => record.seconds[phase] ?? null),
      })),
    });
    const seconds = sum(rounds.map((record) => sum(Object.values(record.seconds))));
    setText(
      $("cost-note"),
      rounds.length
        ? `${duration(seconds)} in ${rounds.length} ${rounds.length === 1 ? "round" : "rounds"}. Bytes are the models' and signals', without the transport's own.`
        : "",
    );
  }
}
