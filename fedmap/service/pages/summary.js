// The head of a run's page: what it is, how far it is, its key figures, and downloads.

import { $, h, number, setText } from "/assets/dom.js";
import { bytes, clock, count, duration, lastPart, score } from "/assets/format.js";
import { compareLink, fileLink, listFiles, modelLink } from "/assets/api.js";
import { bytesOf } from "/assets/run.js";

export const STATUS = { waiting: "waiting", running: "training", finished: "finished", failed: "failed", interrupted: "stopped" };

/** A duration that ticks: no tenths of seconds. */
const whole = (seconds) => (seconds < 59.5 ? `${Math.round(seconds)} s` : duration(seconds));

const sum = (values) => values.reduce((total, value) => total + value, 0);

/** What a run is, in a few words: strategy, model and data. */
export function about(run) {
  const { server, model, dataset } = run.config;
  const told = run.document;
  const parts = [
    told.strategy || (server?.strategy?._target_ && lastPart(server.strategy._target_)),
    told.model || (model?._target_ && lastPart(model._target_)),
    told.dataset || (dataset?._target_ && lastPart(dataset._target_)),
    run.config.runtime?.name && `runtime ${run.config.runtime.name}`,
  ];
  return parts.filter(Boolean).join(" · ");
}

export class Head {
  constructor() {
    this.boxKey = null;
    this.downloads = $("downloads");
    this.downloads.addEventListener("toggle", () => this.downloads.open && this.#fillDownloads());
    document.addEventListener("click", (event) => {
      if (!this.downloads.contains(event.target)) this.downloads.open = false;
    });
    this.downloads.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      this.downloads.open = false;
      this.downloads.querySelector("summary").focus();
    });
  }

  update(run) {
    this.run = run;
    const title = run.id.replaceAll("~", " ");
    setText($("run-title"), run.current && run.active ? (run.status === "waiting" ? "Getting ready" : "Training now") : `Run ${title}`);
    document.title = `${run.active ? `${run.roundsDone}/${run.numRounds ?? "?"} · ` : ""}Run ${title} · FedMAP`;
    $("run-status").dataset.status = run.status;
    setText($("run-status"), STATUS[run.status] ?? run.status);
    setText($("run-about"), [run.current && run.active ? `run ${title}` : "", about(run)].filter(Boolean).join(" · "));
    setText($("run-phase"), run.phase());
    $("compare-link").setAttribute("href", compareLink([run.id]));
    const total = run.numRounds ?? 0;
    const bar = $("progress");
    bar.setAttribute("aria-valuemax", total);
    bar.setAttribute("aria-valuenow", run.roundsDone);
    bar.setAttribute("aria-valuetext", `${run.roundsDone} of ${total || "?"} rounds`);
    const done = total ? run.roundsDone / total : 0;
    const doing = total && run.present !== null && run.asked.length ? run.answers.size / run.asked.length / total : 0;
    bar.querySelector(".done").style.width = `${100 * done}%`;
    bar.querySelector(".doing").style.left = `${100 * done}%`;
    bar.querySelector(".doing").style.width = `${100 * doing}%`;
    this.#box(run);
    this.tick();
  }

  /** What changes by the second. */
  tick() {
    const { run } = this;
    if (!run) return;
    const now = Date.now() / 1000;
    const left = run.secondsLeft(now);
    const trained = sum(run.rounds.map((record) => sum(Object.values(record.seconds))));
    const facts = [
      ["started", run.startedAt === null ? null : clock(run.startedAt)],
      run.active
        ? ["elapsed", run.startedAt === null ? null : whole(Math.max(0, now - run.startedAt))]
        : ["in rounds", trained ? duration(trained) : null],
      ["time left", left === null ? null : left < 1 ? "a moment" : `about ${whole(left)}`],
    ].filter(([, value]) => value !== null);
    const key = JSON.stringify(facts);
    if (key === this.factsKey) return;
    this.factsKey = key;
    $("run-times").replaceChildren(...facts.map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value))));
  }

  #box(run) {
    const key = JSON.stringify([run.id, run.status, run.reason, run.roundsDone, run.joined, run.expected]);
    if (key === this.boxKey) return;
    this.boxKey = key;
    const box = $("run-box");
    box.hidden = false;
    const goOn = run.roundsDone
      ? [
          "Continue it after round ",
          run.roundsDone,
          ":",
          h("pre", null, `python server_main.py resume=outputs/${run.id.replaceAll("~", "/")}`),
        ]
      : [];
    if (run.status === "failed") {
      const reason = run.reason || "No reason was given; see the log in the run's folder.";
      box.replaceChildren(h("div", { class: "box bad", role: "alert" }, h("strong", null, "The run failed"), h("p", null, reason), goOn));
    } else if (run.status === "interrupted") {
      box.replaceChildren(
        h("div", { class: "box warn" }, h("strong", null, "The run was stopped"), h("p", null, "What was done up to there is kept."), goOn),
      );
    } else if (run.status === "waiting") {
      const local = run.config.runtime?.name === "local";
      const who = run.joined.length
        ? `Joined: ${run.joined
            .slice(0, 20)
            .map((id) => `client ${id}`)
            .join(", ")}${run.joined.length > 20 ? ", …" : ""}`
        : local
          ? "The clients are getting ready"
          : "No client has joined yet";
      box.replaceChildren(
        h(
          "div",
          { class: "box info" },
          h("strong", null, who),
          local ? "The first round begins by itself." : ["Each client joins with", h("pre", null, "python client_main.py client_id=0")],
        ),
      );
    } else {
      box.hidden = true;
      box.replaceChildren();
    }
  }

  async #fillDownloads() {
    const list = $("download-list");
    const { id } = this.run;
    const link = (href, name, size) =>
      h(
        "li",
        null,
        h("a", { href, download: true }, h("span", null, name), h("span", { class: "muted" }, size === undefined ? "" : bytes(size))),
      );
    try {
      const files = (await listFiles(id)).map((file) => (typeof file === "string" ? { name: file } : file));
      const has = (folder) => files.some((file) => file.name.startsWith(`${folder}/`));
      const models = ["best", "last"].filter(has);
      const results = files.filter((file) => !/^(best|last)\//.test(file.name));
      list.replaceChildren(
        models.length ? h("h3", null, "Model") : null,
        h(
          "ul",
          null,
          models.map((which) => link(modelLink(id, which), which === "best" ? "chosen model (best.zip)" : "last model (last.zip)")),
        ),
        results.length ? h("h3", null, "Results") : null,
        h(
          "ul",
          null,
          results.map((file) => link(fileLink(id, file.name), file.name, file.size ?? file.bytes)),
        ),
      );
      if (!files.length) list.replaceChildren(h("p", { class: "quiet-empty" }, "Nothing has been written yet."));
    } catch (error) {
      list.replaceChildren(h("p", { class: "quiet-empty" }, `The files cannot be listed: ${error.message}`));
    }
  }
}

const tile = (title, value, note, name) =>
  h("div", { class: "tile", "data-tile": name }, h("h3", null, title), h("div", { class: "value" }, value), h("p", null, note));

/** The key figures; validation and test apart. */
export function drawTiles(run) {
  const { best, last, final } = run;
  const trained = run.rounds.filter((record) => record.round_index > 0);
  const validation = final?.validation ?? best?.validation;
  const tuned = best?.validation_tuned;
  const test = final?.test ?? best?.test;
  const testTuned = final?.test_tuned;
  const asked = last?.clients.length ?? 0;
  const used = last?.clients.filter((client) => client.status === "ok").length ?? 0;
  const left = sum(run.rounds.map((record) => record.clients.filter((client) => client.status !== "ok").length));
  const up = sum(trained.map((record) => bytesOf(record, "bytes_up") ?? 0));
  const down = sum(trained.map((record) => bytesOf(record, "bytes_down") ?? 0));
  const perRound = trained.length ? sum(trained.map((record) => sum(Object.values(record.seconds)))) / trained.length : null;
  const own = run.rounds.findLast((record) => record.clients_validation)?.clients_validation;
  const at = (tunedOnes, plainOnes) =>
    tunedOnes
      ? ["tuned thresholds; ", number(plainOnes?.macro_f1, score), " at 0.5"]
      : plainOnes
        ? "at the model's own decision"
        : "no such rows on the server";
  $("tiles").replaceChildren(
    tile(
      "Best round",
      best ? [h("data", { value: best.round_index }, best.round_index), h("small", null, ` of ${run.numRounds ?? "?"}`)] : "–",
      validation ? "by macro-F1 on validation" : "the last one: no validation rows",
      "best-round",
    ),
    tile("Validation macro-F1", number((tuned ?? validation)?.macro_f1, score), at(tuned, validation), "validation-macro"),
    tile(
      "Test macro-F1",
      number((testTuned ?? test)?.macro_f1, score),
      testTuned ? at(testTuned, test) : test ? `${tuned ? "at 0.5" : "own decision"}; chooses nothing` : "no such rows on the server",
      "test-macro",
    ),
    validation || !own
      ? tile(
          "Validation loss",
          number(validation?.loss, score),
          last?.validation && best !== last ? ["last round ", number(last.validation.loss, score)] : "of the best round",
          "validation-loss",
        )
      : tile("Clients' validation macro-F1", number(own.macro_f1, score), "their own models and rows, pooled", "clients-validation"),
    tile(
      "Clients used",
      asked ? [h("data", { value: used }, used), h("small", null, ` of ${asked}`)] : "–",
      left ? `${count(left)} updates left out in all` : asked ? "none left out so far" : "no round yet",
      "clients",
    ),
    tile(
      "Bytes moved",
      trained.length ? number(up + down, bytes) : "–",
      trained.length ? `${bytes(up)} up, ${bytes(down)} down` : "no round yet",
      "bytes",
    ),
    tile(
      "Time per round",
      number(perRound, duration),
      trained.length ? `mean of ${trained.length} ${trained.length === 1 ? "round" : "rounds"}` : "no round yet",
      "seconds",
    ),
  );
}
