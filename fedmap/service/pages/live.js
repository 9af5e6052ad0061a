// One run, live or past: read its document, follow its events, draw.

import { $, h, setText } from "/assets/dom.js";
import { clock } from "/assets/format.js";
import { follow, listRuns, readRun, runLink } from "/assets/api.js";
import { Run, isActive } from "/assets/run.js";
import { Head, drawTiles } from "/assets/summary.js";
import { Cost, Labels, Scores } from "/assets/scores.js";
import { Clients } from "/assets/clients.js";
import { Maps } from "/assets/maps.js";
import { Notes, Setup, Strategy } from "/assets/strategy.js";

const DRAW_MS = 150; // events of 200 clients come in bursts: the page is drawn this often at most
const LOOK_MS = 5000; // how often the list of runs is looked at

const wanted = new URLSearchParams(location.search).get("run");
const EMPTY_MS = 2000; // and how often while there is none, or none answers
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

let run = null;
let stream = null;
let parts = null;
let connected = true;
let read = 0; // the number of the last event line that was read
let lastWord = null; // when the server last said something, in unix seconds
let timer = null;
let drawn = { rounds: null, final: undefined, labels: null };

function notice(kind, ...content) {
  const place = $("notice");
  place.hidden = !content.length;
  const told = content.map((part) => part.textContent ?? part).join("");
  if (place.textContent === told) return;
  place.replaceChildren(...(content.length ? [h("div", { class: `box ${kind}` }, content)] : []));
}

function tellConnection() {
  if (connected) notice("info");
  else if (run && !run.active)
    notice(
      "info",
      h("strong", null, "This run's server has ended with it"),
      "What is shown is complete. Past runs and downloads: ",
      h("code", null, "python -m fedmap dashboard outputs"),
    );
  else
    notice(
      "warn",
      h("strong", null, "The server does not answer"),
      `${lastWord === null ? "" : `What is shown is from ${clock(lastWord)}. `}The page goes on by itself when the server is back. `,
      h("span", null, "Past runs can be seen with "),
      h("code", null, "python -m fedmap dashboard outputs"),
    );
}

function draw() {
  timer = null;
  if (!run) return;
  $("empty").hidden = true;
  for (const id of ["hero", "sections", "parts"]) $(id).hidden = false;
  parts ??= {
    head: new Head(),
    scores: new Scores(),
    labels: new Labels(),
    clients: new Clients(),
    maps: new Maps(),
    strategy: new Strategy(),
    cost: new Cost(),
    notes: new Notes(),
    setup: new Setup(),
  };
  parts.head.update(run);
  if (drawn.rounds !== run.rounds || drawn.final !== run.final || drawn.labels !== run.labels) {
    drawn = { rounds: run.rounds, final: run.final, labels: run.labels };
    drawTiles(run);
    for (const name of ["scores", "labels", "maps", "cost"]) parts[name].update(run);
  }
  for (const name of ["clients", "strategy", "notes", "setup"]) parts[name].update(run);
  document.body.dataset.status = run.status;
  document.body.dataset.rounds = run.rounds.length;
}

function drawSoon() {
  timer ??= setTimeout(draw, DRAW_MS);
}

async function reread() {
  const { id } = run;
  const document = await readRun(id);
  if (run.id !== id) return;
  lastWord = Date.now() / 1000;
  run.load(document);
  drawSoon();
}

/** The end of a run is told before its last files may be read: ask until they are there. */
async function settle() {
  for (let i = 0; i < 20; i += 1) {
    try {
      await reread();
      if (run.final || run.status === "failed") return;
    } catch {
      // it may be gone already: what the events told stays on the page
    }
    await sleep(300);
  }
}

function take(kind, data, line) {
  const known = run.document.lines ?? 0;
  const old = line <= known;
  read = Math.max(read, line);
  run.apply(kind, data, old);
  drawSoon();
  if (old) {
    if (!run.active && line >= known) stop();
    return;
  }
  lastWord = Date.now() / 1000;
  if (kind === "start") reread().catch(() => {}); // labels and versions are there by now
  if (kind === "finished" || kind === "failed") {
    settle().finally(stop); // the server of a run waits a moment for those who watch
  }
}

function stop() {
  stream?.close();
  stream = null;
}

function listen() {
  stop();
  if (!run.active && !run.document.lines) return; // a past run without events
  stream = follow(run.id, read, take, (open) => {
    if (open === connected || (!open && !run.active)) return;
    connected = open;
    tellConnection();
    if (open) reread().catch(() => {});
  });
}

async function show(id) {
  const document = await readRun(id);
  lastWord = Date.now() / 1000;
  run = new Run(document);
  read = 0;
  drawn = { rounds: null, final: undefined, labels: null };
  draw();
  listen();
}

const startOf = (runs) => (wanted ? { id: wanted } : (runs.find((one) => one.current) ?? runs[0] ?? null));

/** Look for the run to show, for a newer one, and for one that died without a word. */
async function look() {
  const runs = await listRuns();
  if (!connected) {
    connected = true;
    tellConnection();
    if (run?.active) listen();
  }
  if (!run) {
    const first = startOf(runs);
    if (first) await show(first.id);
    else $("empty").hidden = false;
    return;
  }
  const now = runs.find((one) => one.id === run.id);
  if (run.active) {
    const early = !Object.keys(run.config).length; // read before the configuration was written
    if (now && (early || (now.status !== run.status && now.status !== "waiting"))) await reread();
  } else if (now && isActive(now.status)) {
    await show(run.id); // it has been continued
  } else {
    const other = runs.find((one) => isActive(one.status) && one.id !== run.id);
    if (other && !wanted) await show(other.id);
    else if (other) notice("info", h("strong", null, "Another run is training"), h("a", { href: runLink(other.id) }, "Open it"));
  }
}

async function main() {
  for (;;) {
    try {
      await look();
    } catch (error) {
      if (error.status)
        notice(
          "bad",
          h("strong", null, wanted ? `Run ${wanted.replaceAll("~", " ")} cannot be shown` : "The run cannot be shown"),
          `${error.message}. `,
          h("a", { href: "/runs" }, "All runs"),
        );
      else {
        connected = false;
        tellConnection();
      }
    }
    await sleep(run && connected ? LOOK_MS : run && !run.active ? 6 * LOOK_MS : EMPTY_MS);
  }
}

setInterval(() => {
  if (!parts || document.hidden) return;
  parts.head.tick();
  parts.clients.tick();
}, 1000);

setText($("run-phase"), "");
main();
