// The map of clients and rounds: aggregation weights, or anything else that is known of each client in each round.

import { $, h } from "/assets/dom.js";
import { bytes, count, duration, percent, plain, score, words } from "/assets/format.js";
import { Heatmap } from "/assets/heatmap.js";

const PER_CLIENT = /^(.+)-client-(\d+)$/;

const SIGNALS = [
  ["f1_before", "Validation F1 before training", score, [0, 1]],
  ["f1_after", "Validation F1 after training", score, [0, 1]],
  ["validation_loss", "Validation loss", score],
  ["train_loss", "Training loss", score],
  ["update_norm", "Norm of the change", plain],
  ["gradient_norm", "Norm of the gradient", plain],
  ["label_imbalance", "Label imbalance", score, [0, 1]],
  ["diversity", "Share of labels that occur", percent, [0, 1]],
];

/** The aggregator's numbers that belong to one client each: name -> round -> client -> value. */
function diagnosticMaps(rounds) {
  const found = new Map();
  rounds.forEach((record, at) => {
    for (const [key, value] of Object.entries(record.diagnostics)) {
      const match = PER_CLIENT.exec(key);
      if (!match) continue;
      if (!found.has(match[1]))
        found.set(
          match[1],
          rounds.map(() => new Map()),
        );
      found.get(match[1])[at].set(Number(match[2]), value);
    }
  });
  return found;
}

export const isPerClient = (key) => PER_CLIENT.test(key);

export class Maps {
  constructor() {
    this.select = $("map-what");
    this.order = $("map-order");
    this.map = new Heatmap($("weight-map"), { title: "Clients by round", rowName: "client" });
    this.none = h("p", { class: "quiet-empty" }, "The first round has not ended yet.");
    $("weight-map").append(this.none);
    for (const field of [this.select, this.order]) field.addEventListener("change", () => this.draw());
  }

  update(run) {
    this.rounds = run.rounds.filter((record) => record.round_index > 0);
    this.choices = this.#choices(this.rounds);
    const keys = this.choices.map((choice) => choice.name).join("\n");
    if (keys !== this.keys) {
      this.keys = keys;
      const now = this.select.value;
      this.select.replaceChildren(...this.choices.map((choice) => h("option", { value: choice.name }, choice.name)));
      if (this.choices.some((choice) => choice.name === now)) this.select.value = now;
    }
    this.draw();
  }

  #choices(rounds) {
    const records = rounds.map((round) => new Map(round.clients.map((client) => [client.client_id, client])));
    const from = (get) => (c, id) => {
      const client = records[c].get(id);
      return client && client.status === "ok" ? (get(client) ?? null) : null;
    };
    const all = [{ name: "Aggregation weight", format: percent, low: 0, get: from((client) => client.weight) }];
    for (const [name, values] of diagnosticMaps(rounds)) {
      const weight = name.startsWith("weight-");
      all.push({
        name: weight ? `Weight in parts for “${words(name.slice(7))}”` : `${words(name)} (by the strategy)`,
        format: weight ? percent : score,
        low: weight ? 0 : undefined,
        get: (c, id) => values[c].get(id) ?? null,
      });
    }
    for (const [key, name, format, domain] of SIGNALS) all.push({ name, format, domain, get: from((client) => client.signals?.[key]) });
    const customs = new Set(rounds.flatMap((round) => round.clients.flatMap((client) => Object.keys(client.signals?.custom ?? {}))));
    for (const key of customs) all.push({ name: `signal ${key}`, format: plain, get: from((client) => client.signals?.custom?.[key]) });
    all.push({ name: "Examples", format: count, low: 0, get: from((client) => client.num_examples) });
    all.push({ name: "Bytes up", format: bytes, low: 0, get: from((client) => client.bytes_up) });
    const phases = new Set(rounds.flatMap((round) => round.clients.flatMap((client) => Object.keys(client.seconds ?? {}))));
    for (const phase of phases)
      all.push({ name: `Seconds: ${phase}`, format: duration, low: 0, get: from((client) => client.seconds?.[phase]) });
    const ids = [...new Set(records.flatMap((round) => [...round.keys()]))];
    return all.filter((choice, i) => i === 0 || rounds.some((_, c) => ids.some((id) => choice.get(c, id) !== null)));
  }

  draw() {
    const { rounds } = this;
    this.none.hidden = rounds.length > 0;
    this.map.element.hidden = !rounds.length;
    if (!rounds.length) return;
    const choice = this.choices.find((one) => one.name === this.select.value) ?? this.choices[0];
    const records = rounds.map((round) => new Map(round.clients.map((client) => [client.client_id, client])));
    let ids = [...new Set(records.flatMap((round) => [...round.keys()]))].sort((a, b) => a - b);
    if (this.order.value === "mean") {
      const mean = (id) => {
        const told = rounds.map((_, c) => choice.get(c, id)).filter((value) => value !== null);
        return told.length ? told.reduce((a, b) => a + b, 0) / told.length : -Infinity;
      };
      const means = new Map(ids.map((id) => [id, mean(id)]));
      ids = ids.sort((a, b) => means.get(b) - means.get(a) || a - b);
    }
    const values = ids.map((id) => rounds.map((_, c) => choice.get(c, id)));
    const told = values.flat().filter((value) => value !== null);
    const domain =
      choice.domain ?? (choice.low === undefined ? undefined : [choice.low, told.reduce((a, b) => Math.max(a, b), choice.low)]);
    this.map.update({
      label: choice.name,
      format: choice.format,
      domain,
      columns: rounds.map((round) => round.round_index),
      rows: ids.map((id) => ({ key: String(id), label: ids.length > 40 ? String(id) : `client ${id}` })),
      value: (r, c) => values[r][c],
      lost: (r, c) => {
        const client = records[c].get(ids[r]);
        return client && client.status !== "ok" ? `${client.status}${client.reason ? `: ${client.reason}` : ""}` : null;
      },
    });
  }
}
