// What runs are compared by when they have ended.

import { bytes, count, duration, score } from "/assets/format.js";
import { bytesOf } from "/assets/run.js";

const sum = (values) => values.reduce((total, value) => total + value, 0);

/** Whether there is a number. */
export const present = (value) => value !== null && value !== undefined && Number.isFinite(value);

const mean = (values) => (values.length ? sum(values) / values.length : null);
const least = (values) => (values.length ? Math.min(...values) : null);
const total = (values) => (values.some(present) ? sum(values.filter(present)) : null);

/** Name, value of a run, format, and which end is the good one: 1 high, -1 low, 0 neither. */
export const FINALS = [
  ["Best round", (run) => run.final?.chosen_round ?? run.best?.round_index, String, 0],
  ["Validation macro-F1, tuned", (run) => run.best?.validation_tuned?.macro_f1, score, 1],
  ["Test macro-F1, tuned", (run) => run.final?.test_tuned?.macro_f1, score, 1],
  ["Test micro-F1, tuned", (run) => run.final?.test_tuned?.micro_f1, score, 1],
  ["Test macro-F1, untuned", (run) => (run.final ? run.final.test : run.best?.test)?.macro_f1, score, 1],
  ["Test micro-F1, untuned", (run) => (run.final ? run.final.test : run.best?.test)?.micro_f1, score, 1],
  ["Test loss", (run) => (run.final ? run.final.test : run.best?.test)?.loss, score, -1],
  ["Mean client macro-F1", (run) => mean(Object.values(run.final?.clients ?? {}).map((one) => one.macro_f1)), score, 1],
  ["Worst client macro-F1", (run) => least(Object.values(run.final?.clients ?? {}).map((one) => one.macro_f1)), score, 1],
  ["Bytes", (run) => total(run.rounds.flatMap((record) => [bytesOf(record, "bytes_up"), bytesOf(record, "bytes_down")])), bytes, 0],
  ["Seconds in rounds", (run) => total(run.rounds.map((record) => sum(Object.values(record.seconds)))), duration, 0],
  [
    "Updates left out",
    (run) => sum(run.rounds.map((record) => record.clients.filter((client) => client.status !== "ok").length)),
    count,
    0,
  ],
];
