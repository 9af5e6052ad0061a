// What the table of clients says about one client.

import { h, number } from "/assets/dom.js";
import { ago, bytes, clock, count, duration, percent, plain, score, spans, words } from "/assets/format.js";

const WORD = {
  ok: "used",
  answered: "answered",
  training: "training",
  failed: "failed",
  rejected: "rejected",
  marked: "used, with a remark",
  joined: "joined",
  idle: "not asked",
};

/** The columns of the table, and what each sorts by. */
export const COLUMNS = [
  { key: "id", name: "Client", sort: (c) => c.id },
  { key: "status", name: "State", sort: (c) => c.status },
  {
    key: "modalities",
    name: "Modalities",
    sort: (c) =>
      Object.entries(c.signals.modality_shares ?? {})
        .filter(([, share]) => share > 0)
        .map(([name]) => name)
        .join(" "),
  },
  { key: "examples", name: "Examples", num: true, sort: (c) => c.shown?.num_examples },
  { key: "weight", name: "Weight", num: true, sort: (c) => c.record?.weight },
  { key: "before", name: "F1 before", num: true, sort: (c) => c.signals.f1_before },
  { key: "after", name: "F1 after", num: true, sort: (c) => c.signals.f1_after },
  { key: "loss", name: "Training loss", num: true, sort: (c) => c.signals.train_loss },
  { key: "test", name: "Test macro-F1", num: true, sort: (c) => c.test?.macro_f1 },
  { key: "rounds", name: "Rounds", num: true, sort: (c) => c.ok },
  { key: "seen", name: "Last seen", num: true, sort: (c) => c.lastSeen ?? c.lastRound },
];

function chips(shares) {
  const named = Object.entries(shares ?? {});
  if (!named.length) return h("span", { class: "missing" }, "–");
  return h(
    "span",
    { class: "chips" },
    named
      .filter(([, share]) => share > 0)
      .map(([name, share]) => h("span", { class: "chip" }, share >= 0.9995 ? name : `${name} ${percent(share)}`)),
  );
}

/** A state as a coloured word. */
export const pill = (status) => h("span", { class: "status", "data-status": status }, WORD[status] ?? status);

function seen(client) {
  if (client.lastSeen !== null) return h("span", { title: clock(client.lastSeen) }, ago(client.lastSeen));
  return h("span", null, client.lastRecord ? `round ${client.lastRound}` : client.status === "joined" ? "joined" : "never");
}

/** By column, a client's cell. */
export const CELLS = {
  status: (c) => pill(c.status),
  modalities: (c) => chips(c.signals.modality_shares),
  examples: (c) => number(c.shown?.num_examples, count),
  weight: (c) => number(c.record?.weight, percent),
  before: (c) => number(c.signals.f1_before, score),
  after: (c) => number(c.signals.f1_after, score),
  loss: (c) => number(c.signals.train_loss, score),
  test: (c) => number(c.test?.macro_f1, score),
  rounds: (c) => h("span", { title: "rounds whose update was used, of those it was asked in" }, c.asked ? `${c.ok} of ${c.asked}` : "–"),
  seen,
};

/** Everything else that a client told, and when it was left out. */
export function details(client) {
  const { record, shown, signals } = client;
  const facts = [
    ["optimiser steps", number(shown?.num_steps, count)],
    ...["validation_loss", "update_norm", "gradient_norm", "label_imbalance", "diversity"].map((key) => [
      words(key),
      number(signals[key], plain),
    ]),
    ["rows with every modality", number(signals.share_complete, percent)],
    ...Object.entries(signals.custom ?? {}).map(([key, value]) => [key, number(value, plain)]),
    ...Object.entries(record?.scalars ?? {}).map(([key, value]) => [words(key), number(value, plain)]),
    ...Object.entries(record?.seconds ?? {}).map(([key, value]) => [`time to ${key}`, number(value, duration)]),
    ["bytes up", number(record?.bytes_up, bytes)],
    ["bytes down", number(record?.bytes_down, bytes)],
    ["mean weight", number(client.weights.length ? client.weights.reduce((a, b) => a + b, 0) / client.weights.length : null, percent)],
    ...(client.test
      ? [
          ["test micro-F1", number(client.test.micro_f1, score)],
          ["test rows", number(client.test.num_samples, count)],
        ]
      : []),
  ];
  const reasons = new Map(); // sentence -> rounds
  for (const { round, status, code, reason } of client.problems) {
    const sentence = `${status}${code ? ` (${code})` : ""}: ${reason}`;
    reasons.set(sentence, [...(reasons.get(sentence) ?? []), round]);
  }
  return [
    h(
      "dl",
      { class: "facts" },
      facts.map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value))),
    ),
    reasons.size
      ? h(
          "ul",
          { class: "reasons" },
          [...reasons].map(([sentence, rounds]) => h("li", null, `round${rounds.length > 1 ? "s" : ""} ${spans(rounds)}, ${sentence}`)),
        )
      : null,
  ];
}
