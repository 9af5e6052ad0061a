// All runs, newest first; any two or more can be compared.

import { $, breakable, h, number, setText } from "/assets/dom.js";
import { clock, count, lastPart, score } from "/assets/format.js";
import { compareLink, listRuns, runLink } from "/assets/api.js";
import { STATUS } from "/assets/summary.js";

const COLUMNS = [
  { name: "Run", sort: (run) => run.id },
  { name: "State", sort: (run) => run.status },
  { name: "Strategy", sort: (run) => run.strategy ?? "" },
  { name: "Model", sort: (run) => run.model ?? "" },
  { name: "Data", sort: (run) => run.dataset ?? "" },
  { name: "Rounds", num: true, sort: (run) => run.rounds_done },
  { name: "Best round", num: true, sort: (run) => run.best_round },
  { name: "Validation macro-F1", num: true, sort: (run) => run.validation_macro_f1 },
  { name: "Test macro-F1", num: true, sort: (run) => run.test_macro_f1 },
];

const chosen = new Set();
let runs = [];
let order = { at: 0, down: true };
let told = null;

const heads = COLUMNS.map((column, i) =>
  h(
    "th",
    { scope: "col", class: column.num ? "num" : null },
    h("button", { type: "button", class: "sort", onclick: () => sort(i) }, column.name),
  ),
);
const body = h("tbody");
const table = h(
  "div",
  { class: "scroll", tabindex: 0, role: "region", "aria-label": "Runs" },
  h(
    "table",
    { id: "runs-table" },
    h("caption", { class: "hidden" }, "Runs"),
    h("thead", null, h("tr", null, h("th", { scope: "col", class: "pick" }, h("span", { class: "hidden" }, "Choose")), heads)),
    body,
  ),
);

function sort(at) {
  order = { at, down: order.at === at ? !order.down : at === 0 || Boolean(COLUMNS[at].num) };
  draw();
}

function tellChosen() {
  const ids = runs.map((run) => run.id).filter((id) => chosen.has(id));
  const link = $("compare");
  if (ids.length > 1) {
    link.setAttribute("href", compareLink(ids));
    link.removeAttribute("aria-disabled");
  } else {
    link.removeAttribute("href");
    link.setAttribute("aria-disabled", "true");
  }
  setText(link, ids.length > 1 ? `Compare ${ids.length} runs` : "Compare");
  setText($("chosen"), ids.length > 1 ? "" : ids.length ? "choose one more" : "choose two or more");
}

function row(run) {
  const name = run.id.replaceAll("~", " ");
  const box = h("input", {
    type: "checkbox",
    "aria-label": `Choose run ${name}`,
    checked: chosen.has(run.id),
    onchange: (event) => {
      if (event.currentTarget.checked) chosen.add(run.id);
      else chosen.delete(run.id);
      tellChosen();
    },
  });
  const short = (value) => (value ? breakable(lastPart(value)) : h("span", { class: "missing" }, "–"));
  return h(
    "tr",
    { "data-run": run.id },
    h("td", { class: "pick" }, box),
    h(
      "th",
      { scope: "row" },
      h(
        "span",
        null,
        h("a", { href: runLink(run.id), title: run.started ? `started ${clock(run.started)}` : null }, name),
        run.current ? h("span", { class: "now" }, "this server's") : null,
      ),
    ),
    h("td", { class: "wide" }, h("span", { class: "status", "data-status": run.status }, STATUS[run.status] ?? run.status)),
    h("td", { class: "wide", "data-name": "Strategy" }, short(run.strategy)),
    h("td", { class: "wide", "data-name": "Model" }, short(run.model)),
    h("td", { class: "wide", "data-name": "Data" }, short(run.dataset)),
    h("td", { class: "num", "data-name": "Rounds" }, h("span", null, `${run.rounds_done ?? 0} of ${run.num_rounds ?? "?"}`)),
    h("td", { class: "num", "data-name": "Best" }, number(run.best_round, String)),
    h("td", { class: "num", "data-name": "Validation" }, number(run.validation_macro_f1, score)),
    h("td", { class: "num", "data-name": "Test" }, number(run.test_macro_f1, score)),
  );
}

function draw() {
  const find = $("find").value.trim().toLowerCase();
  const text = (run) => [run.id, run.status, run.strategy, run.model, run.dataset].join(" ").toLowerCase();
  const { sort: key } = COLUMNS[order.at];
  const shown = runs
    .filter((run) => text(run).includes(find))
    .sort((a, b) => {
      const [x, y] = [key(a) ?? null, key(b) ?? null];
      if (x === null || y === null) return (x === null) - (y === null);
      const least = typeof x === "string" ? x.localeCompare(y) : x - y;
      return order.down ? -least : least;
    });
  heads.forEach((head, i) => {
    if (i === order.at) head.setAttribute("aria-sort", order.down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
  const focused = document.activeElement?.closest?.("tr")?.dataset.run;
  const kind = document.activeElement?.tagName;
  body.replaceChildren(...shown.map(row));
  if (focused)
    [...body.children]
      .find((one) => one.dataset.run === focused)
      ?.querySelector(kind)
      ?.focus({ preventScroll: true });
  $("empty").hidden = runs.length > 0;
  $("tools").hidden = runs.length < 1;
  $("list").hidden = !runs.length;
  setText(
    $("runs-note"),
    runs.length
      ? shown.length === runs.length
        ? `${count(runs.length)} ${runs.length === 1 ? "run" : "runs"}`
        : `${count(shown.length)} of ${count(runs.length)} runs`
      : "",
  );
  tellChosen();
}

async function main() {
  $("list").append(table);
  $("find").addEventListener("input", draw);
  for (;;) {
    try {
      const found = await listRuns();
      $("notice").hidden = true;
      const key = JSON.stringify(found);
      if (key !== told) {
        told = key;
        runs = found;
        draw();
      }
    } catch (error) {
      $("notice").hidden = false;
      $("notice").replaceChildren(
        h(
          "div",
          { class: "box warn" },
          h("strong", null, "The runs cannot be read"),
          error.status ? error.message : "The server does not answer; the page tries again by itself.",
        ),
      );
    }
    await new Promise((done) => setTimeout(done, 5000));
  }
}

main();
