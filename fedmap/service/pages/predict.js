// The page that predicts: a poster and a plot go to POST /predict, first for the scores, then once more for what mattered.

import { getJson } from "/assets/api.js";
import { $, h, number } from "/assets/dom.js";

const FAINT = 0.05; // log-odds below which nothing is coloured
const SHOWN = 5;
const MAX_BYTES = 10 * 1024 * 1024;
const score3 = (value) => value.toFixed(3);
const odds = (logOdds) => 1 / (1 + Math.exp(-logOdds));

let poster = null; // the chosen file
let posterUrl = null;
let asked = 0; // answers to questions before the last one are thrown away
let answer = null;

async function start() {
  let runs;
  try {
    runs = await getJson("/api/models");
  } catch (error) {
    complain(error.message);
    return;
  }
  $("none").hidden = runs.length > 0;
  $("form").hidden = runs.length === 0;
  $("run").replaceChildren(...runs.map((run, i) => h("option", { value: run.id }, run.id.replaceAll("~", " ") + (i === 0 ? " (newest)" : ""))));
  const wanted = new URLSearchParams(location.search).get("run");
  if (runs.some((run) => run.id === wanted)) $("run").value = wanted;
  const offer = () => {
    const run = runs.find((one) => one.id === $("run").value);
    const names = { best: "Global, best round", last: "Global, last round" };
    $("which").replaceChildren(
      ...(run?.models ?? []).map((name) => h("option", { value: name }, names[name])),
      ...(run?.clients ?? []).map((client) => h("option", { value: client }, `Client ${client}’s own`)),
    );
  };
  $("run").addEventListener("change", offer);
  offer();
}

function choose(file) {
  if (posterUrl && posterUrl !== answer?.picture) URL.revokeObjectURL(posterUrl);
  poster = file;
  posterUrl = file ? URL.createObjectURL(file) : null;
  const preview = $("preview");
  preview.hidden = !file;
  $("drop-text").hidden = Boolean(file);
  $("remove").hidden = !file;
  if (file) preview.src = posterUrl;
  else preview.removeAttribute("src");
  $("poster-hint").textContent = file ? file.name : "JPEG, PNG, WebP, GIF or BMP, up to 10 MiB";
  complain(file && file.size > MAX_BYTES ? "This picture has more than 10 MiB; choose a smaller copy." : "");
}

function complain(sentence) {
  $("problem").textContent = sentence;
  $("problem").hidden = !sentence;
}

/** What the form holds now; later changes to it do not matter for the question. */
function question() {
  const form = new FormData();
  if (poster) form.append("poster", poster);
  form.append("text", $("text").value);
  form.append("run", $("run").value);
  const which = $("which").value;
  form.append(/^\d+$/.test(which) ? "client" : "model", which);
  return form;
}

async function ask(form, explain) {
  form.set("explain", explain ? "true" : "false");
  const response = await fetch("/predict", { method: "POST", body: form });
  const body = await response.json().catch(() => ({}));
  if (response.ok) return body;
  throw new Error(typeof body.detail === "string" ? body.detail : `the server answered ${response.status} ${response.statusText}`);
}

async function submit(event) {
  event.preventDefault();
  if (!poster && !$("text").value.trim()) {
    complain("Give a poster, a plot, or both.");
    $("text").focus();
    return;
  }
  complain("");
  asked += 1;
  const mine = asked;
  const text = $("text").value;
  const picture = posterUrl;
  const form = question();
  $("go").disabled = true;
  $("go").textContent = "Predicting…";
  try {
    const found = await ask(form, false);
    if (mine !== asked) return;
    if (answer?.picture && answer.picture !== posterUrl) URL.revokeObjectURL(answer.picture);
    answer = { ...found, text, picture };
    showScores();
    $("result-title").focus({ preventScroll: true });
    $("result").scrollIntoView({ block: "nearest" });
    explain(form, mine);
  } catch (error) {
    if (mine === asked) complain(error.message);
  } finally {
    $("go").disabled = false;
    $("go").textContent = "Predict";
  }
}

function showScores() {
  $("result").hidden = false;
  const { scores, decided, without_poster: plotOnly, without_text: posterOnly, model } = answer;
  const whose = { best: "Global model of the best round", last: "Global model of the last round" }[model.which] ?? `Own model of ${model.which}`;
  $("asked").textContent = `${whose}, run ${model.run.replaceAll("~", " ")}; ${model.thresholds}.`;
  $("decided").replaceChildren(...(decided.length ? decided.map((label) => h("span", { class: "chip" }, label)) : [h("span", { class: "chip none" }, "No genre reaches its threshold")]));
  $("scores").classList.toggle("single", !plotOnly);
  const other = (rows, label) => rows?.find((row) => row.label === label) ?? null;
  $("scores").tBodies[0].replaceChildren(...scores.map((row) => {
    const fill = h("span", { class: "fill" });
    fill.style.setProperty("--score", `${100 * row.score}%`);
    const tick = h("span", { class: "tick" });
    tick.style.setProperty("--threshold", `${100 * row.threshold}%`);
    return h("tr", { class: row.decided ? "decided" : null, "data-label": row.label },
      h("th", { scope: "row" }, h("button", { type: "button", title: `What mattered for ${row.label}`, onclick: () => pick(row.label) }, row.label, row.decided ? h("span", { class: "hidden" }, " predicted") : null)),
      h("td", null, h("div", { class: "bar", "aria-hidden": "true" }, fill, tick)),
      h("td", { class: "num" }, number(row.score, score3)),
      h("td", { class: "num" }, number(row.threshold, score3)),
      [plotOnly, posterOnly].map((rows) => h("td", { class: "num without" }, changed(row, other(rows, row.label)))),
    );
  }));
}

/** A score without one of the two, and which way it has gone; a change of decision is said. */
function changed(row, without) {
  if (!without) return "";
  const difference = without.score - row.score;
  const arrow = Math.abs(difference) < 0.0005 ? "" : difference > 0 ? " ▲" : " ▼";
  const words = without.decided === row.decided ? "" : without.decided ? " (then predicted)" : " (then not predicted)";
  return [number(without.score, score3), arrow && h("span", { class: difference > 0 ? "up" : "down", "aria-hidden": "true" }, arrow), words && h("span", { class: "hidden" }, words)];
}

async function explain(form, mine) {
  const section = $("mattered");
  section.hidden = false;
  section.setAttribute("aria-busy", "true");
  $("why").hidden = true;
  $("waiting").textContent = "Looking at each word and region…";
  const first = answer.decided[0] ?? answer.scores[0].label;
  $("genre").replaceChildren(...answer.scores.map((row) => h("option", { value: row.label }, row.decided ? `${row.label} ✓` : row.label)));
  $("genre").value = first;
  try {
    const found = await ask(form, true);
    if (mine !== asked) return;
    answer.explanation = found.explanation;
    $("waiting").textContent = "";
    showMattered();
  } catch (error) {
    if (mine === asked) $("waiting").textContent = `What mattered could not be found out: ${error.message}`;
  } finally {
    if (mine === asked) section.setAttribute("aria-busy", "false");
  }
}

function pick(label) {
  $("genre").value = label;
  showMattered();
  $("mattered").scrollIntoView({ block: "nearest" });
}

function showMattered() {
  const found = answer?.explanation;
  if (!found) return;
  const label = $("genre").value;
  const effect = (part) => part.effects[label];
  const largest = Math.max(FAINT, ...[...found.words, ...found.regions].map((part) => Math.abs(effect(part))));
  const without = (part) => score3(odds(found.log_odds[label] - effect(part)));
  const now = score3(odds(found.log_odds[label]));
  const tone = (element, part) => {
    const value = effect(part);
    if (Math.abs(value) < FAINT) return;
    element.classList.add(value > 0 ? "for" : "against");
    element.style.setProperty("--level", `${Math.round((75 * Math.abs(value)) / largest)}%`);
    element.style.setProperty("--tone", value > 0 ? "var(--c1)" : "var(--c2)");
  };
  $("why").hidden = false;
  showWords(found.words, effect, tone, (part) => `${label}: ${without(part)} without it, ${now} with it`);
  for (const [id, sign] of [["words-for", 1], ["words-against", -1]]) {
    const parts = found.words.filter((part) => sign * effect(part) >= FAINT).sort((a, b) => sign * (effect(b) - effect(a))).slice(0, SHOWN);
    $(id).replaceChildren(...(parts.length ? parts.map((part) => h("li", null, h("span", null, part.word), h("span", { class: "muted" }, `without it ${without(part)}`))) : [h("li", { class: "muted" }, "no word by itself")]));
  }
  showRegions(found.regions, effect, tone, label, without, now);
}

function showWords(words, effect, tone, title) {
  const text = answer.text;
  // the server counts characters as Python does, by code points
  const points = Array.from(text);
  const slice = (start, end) => points.slice(start, end).join("");
  const parts = [];
  let last = 0;
  for (const word of words) {
    parts.push(slice(last, word.start));
    const span = h("span", { title: title(word) }, slice(word.start, word.end));
    tone(span, word);
    parts.push(span);
    last = word.end;
  }
  parts.push(slice(last));
  $("words").hidden = words.length === 0;
  $("plot").replaceChildren(...parts);
}

function showRegions(regions, effect, tone, label, without, now) {
  $("picture").hidden = regions.length === 0;
  if (!regions.length) return;
  $("shown").src = answer.picture;
  const strongest = regions.reduce((best, part) => (Math.abs(effect(part)) > Math.abs(effect(best)) ? part : best));
  $("grid").replaceChildren(...regions.map((part) => {
    const cell = h("span", { title: `${label}: ${without(part)} with this region covered, ${now} as it is` });
    tone(cell, part);
    if (part === strongest && Math.abs(effect(part)) >= FAINT) cell.classList.add("strong");
    return cell;
  }));
  $("shown").alt = "The poster, with the regions that mattered coloured";
  $("regions-said").textContent = Math.abs(effect(strongest)) < FAINT
    ? `No single region of the poster matters for ${label}.`
    : `Strongest: row ${strongest.row + 1}, column ${strongest.column + 1}, ${effect(strongest) > 0 ? "for" : "against"} ${label}; covered, the score is ${without(strongest)} instead of ${now}.`;
}

$("poster").addEventListener("change", (event) => choose(event.target.files[0] ?? null));
$("remove").addEventListener("click", () => {
  $("poster").value = "";
  choose(null);
  $("poster").focus();
});
$("form").addEventListener("submit", submit);
$("genre").addEventListener("change", showMattered);
const drop = $("drop");
for (const kind of ["dragenter", "dragover"]) {
  drop.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
}
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  const file = event.dataTransfer.files[0];
  if (file) choose(file);
});
start();
