// Two or more runs side by side: final scores, overlaid curves, F1 by label, and where their configurations differ.

import { $, breakable, h, number, setText } from "/assets/dom.js";
import { FINALS, present } from "/assets/finals.js";
import { lastPart, score, short } from "/assets/format.js";
import { compareLink, listRuns, readRun, runLink } from "/assets/api.js";
import { swatch } from "/assets/axes.js";
import { Chart } from "/assets/chart.js";
import { Run } from "/assets/run.js";
import { STATUS } from "/assets/summary.js";
import { flat } from "/assets/strategy.js";

const TITLES = [
  ["macro_f1", "Macro-F1"],
  ["micro_f1", "Micro-F1"],
  ["loss", "Loss"],
];
const runs = new Map(); // id -> Run, in the order in which they were chosen
const tones = new Map(); // id -> colour and dash, kept while the run is on the page
let charts = null;
let known = [];

function strategyOf(run) {
  const target = run.config.server?.strategy?._target_;
  return target ? lastPart(target) : "";
}

/** Short names that tell the runs apart: the strategy, with the run's own name where two have the same. */
function names() {
  const strategies = [...runs.values()].map(strategyOf);
  return new Map(
    [...runs.values()].map((run) => {
      const own = run.id.replaceAll("~", " ");
      const strategy = strategyOf(run);
      const single = strategy && strategies.filter((other) => other === strategy).length === 1;
      return [run.id, single ? strategy : [strategy, own].filter(Boolean).join(" · ")];
    }),
  );
}

function take(id, run) {
  runs.set(id, run);
  if (tones.has(id)) return;
  const used = new Set([...tones.values()].map((tone) => tone.at));
  let at = 0;
  while (used.has(at)) at += 1;
  tones.set(id, { at, tone: (at % 8) + 1, dash: at % 4 });
}

function drop(id) {
  runs.delete(id);
  tones.delete(id);
  remember();
  draw();
  $("add").focus();
}

function remember() {
  const ids = [...runs.keys()];
  history.replaceState(null, "", ids.length ? compareLink(ids) : "/compare");
}

async function add(id) {
  if (!id || runs.has(id)) return;
  try {
    take(id, new Run(await readRun(id)));
    $("notice").hidden = true;
  } catch (error) {
    $("notice").hidden = false;
    $("notice").replaceChildren(
      h("div", { class: "box bad" }, h("strong", null, `Run ${id.replaceAll("~", " ")} cannot be shown`), error.message),
    );
  }
}

function drawPicked(named) {
  $("picked").replaceChildren(
    ...[...runs.values()].map((run) =>
      h(
        "li",
        null,
        swatch(tones.get(run.id)),
        h("a", { href: runLink(run.id) }, named.get(run.id)),
        h("button", { type: "button", "aria-label": `Remove ${named.get(run.id)}`, onclick: () => drop(run.id) }, "×"),
      ),
    ),
  );
  const rest = known.filter((run) => !runs.has(run.id));
  $("add").disabled = !rest.length;
  $("add").replaceChildren(
    h("option", { value: "" }, rest.length ? "choose…" : "there is no other run"),
    ...rest.map((run) =>
      h(
        "option",
        { value: run.id },
        [run.id.replaceAll("~", " "), run.strategy ? lastPart(run.strategy) : "", STATUS[run.status] ?? run.status]
          .filter(Boolean)
          .join(" · "),
      ),
    ),
  );
}

/**
 * A table with a row per measure and a column per run; the best of a row is marked.
 * @param {{name: string, format: (v: number) => string, better: number, values: (number|null)[]}[]} measures better: 1 high, -1 low, 0 neither
 */
function ranked(caption, id, named, measures, of = [...runs.values()]) {
  const rows = measures
    .filter((measure) => measure.values.some(present))
    .map(({ name, format, better, values }) => {
      const told = values.filter(present);
      const top = better && told.length > 1 && new Set(told).size > 1 ? better * Math.max(...told.map((value) => better * value)) : null;
      return h(
        "tr",
        null,
        h("th", { scope: "row" }, name),
        values.map((value) => h("td", { class: top !== null && value === top ? "num best" : "num" }, number(value, format))),
      );
    });
  const heads = of.map((run) =>
    h(
      "th",
      { scope: "col", class: "num", "data-run": run.id },
      h(
        "span",
        { class: "series" },
        swatch(tones.get(run.id)),
        breakable(named.get(run.id)),
        run.final ? null : h("span", { class: "status", "data-status": run.status }, STATUS[run.status] ?? run.status),
      ),
    ),
  );
  return h(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    h(
      "table",
      { id, class: "ranked" },
      h("caption", { class: "hidden" }, caption),
      h("thead", null, h("tr", null, h("td", null), heads)),
      h("tbody", null, rows),
    ),
  );
}

function drawFinals(named) {
  const measures = FINALS.map(([name, get, format, better]) => ({
    name,
    format,
    better,
    values: [...runs.values()].map((run) => get(run) ?? null),
  }));
  $("final-table").replaceChildren(ranked("Final scores", "finals-table", named, measures));
}

function drawCurves(named) {
  const place = $("curve-charts");
  charts ??= TITLES.map(([name, title]) => ({ name, chart: new Chart(place, { title, format: score, tick: short }) }));
  const split = $("split").value;
  const x = [...new Set([...runs.values()].flatMap((run) => run.rounds.map((record) => record.round_index)))].sort((a, b) => a - b);
  for (const { name, chart } of charts) {
    chart.update({
      x,
      series: [...runs.values()].map((run) => {
        const by = new Map(run.rounds.map((record) => [record.round_index, record[split]?.[name] ?? null]));
        return { key: run.id, label: named.get(run.id), ...tones.get(run.id), values: x.map((round) => by.get(round) ?? null) };
      }),
    });
  }
}

function drawLabels(named) {
  const scored = [...runs.values()].filter((run) => run.final?.labels?.length);
  $("by-label").hidden = !scored.length;
  if (!scored.length) return;
  const support = new Map();
  for (const run of scored) for (const row of run.final.labels) support.set(row.label, Math.max(row.support, support.get(row.label) ?? 0));
  const labels = [...support.keys()].sort((a, b) => support.get(b) - support.get(a) || a.localeCompare(b));
  const by = scored.map((run) => new Map(run.final.labels.map((row) => [row.label, row.f1])));
  const measures = labels.map((name) => ({ name, format: score, better: 1, values: by.map((one) => one.get(name) ?? null) }));
  $("label-table").replaceChildren(ranked("F1 by label on test rows", "labels-table", named, measures, scored));
}

function drawConfigs(named) {
  const flats = new Map([...runs.values()].map((run) => [run.id, new Map(flat(run.config))]));
  const keys = [...new Set([...flats.values()].flatMap((one) => [...one.keys()]))].filter(Boolean);
  const differs = (key) => new Set([...flats.values()].map((one) => one.get(key))).size > 1;
  const shown = $("all-keys").checked ? keys : keys.filter(differs);
  const first = [...flats.values()][0];
  $("config-table").replaceChildren(
    shown.length
      ? h(
          "div",
          { class: "scroll", tabindex: 0, role: "region", "aria-label": "Configuration" },
          h(
            "table",
            { class: "differences", id: "config-differences" },
            h("caption", { class: "hidden" }, "Configuration"),
            h(
              "thead",
              null,
              h(
                "tr",
                null,
                h("th", { scope: "col" }, "Key"),
                [...runs.keys()].map((id) => h("th", { scope: "col" }, named.get(id))),
              ),
            ),
            h(
              "tbody",
              null,
              shown.map((key) =>
                h(
                  "tr",
                  null,
                  h("th", { scope: "row" }, breakable(key)),
                  [...flats.values()].map((one) =>
                    h(
                      "td",
                      { class: one.has(key) && first.has(key) && one.get(key) !== first.get(key) ? "other" : null },
                      one.has(key) ? breakable(one.get(key)) : h("span", { class: "missing" }, "–"),
                    ),
                  ),
                ),
              ),
            ),
          ),
        )
      : h("p", { class: "quiet-empty" }, "Their configurations are the same."),
  );
}

function draw() {
  const named = names();
  drawPicked(named);
  const enough = runs.size > 1;
  $("empty").hidden = enough;
  for (const id of ["finals", "curves", "by-label", "configs"]) $(id).hidden = !enough;
  setText($("compare-note"), runs.size ? `${runs.size} ${runs.size === 1 ? "run" : "runs"}` : "");
  if (!enough) return;
  $("pair").classList.toggle("many", runs.size > 4);
  const splits = { validation: 0, validation_tuned: 0, test: 0 };
  for (const run of runs.values())
    for (const record of run.rounds) for (const split of Object.keys(splits)) splits[split] += record[split] ? 1 : 0;
  for (const option of $("split").options) option.disabled = !splits[option.value];
  drawFinals(named);
  drawCurves(named);
  drawLabels(named);
  drawConfigs(named);
}

async function refresh() {
  const active = [...runs.values()].filter((run) => run.active);
  for (const run of active) {
    try {
      run.load(await readRun(run.id));
    } catch {
      // it stays as it is
    }
  }
  if (active.length) draw();
}

async function main() {
  $("add").addEventListener("change", async (event) => {
    await add(event.currentTarget.value);
    remember();
    draw();
  });
  $("split").addEventListener("change", draw);
  $("all-keys").addEventListener("change", draw);
  for (const id of new URLSearchParams(location.search).getAll("run")) await add(id);
  const tuned = [...runs.values()].some((run) => run.rounds.some((record) => record.validation_tuned));
  if (tuned) $("split").value = "validation_tuned";
  try {
    known = await listRuns();
  } catch {
    known = [];
  }
  draw();
  setInterval(refresh, 5000);
}

main();
