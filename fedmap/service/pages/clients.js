// The table of clients and the list of updates that were left out. Rows stay on the page and are changed in place, so that a live
// table keeps its focus and its scroll.

import { CELLS, COLUMNS, details, pill } from "/assets/client_cells.js";
import { $, h, setText } from "/assets/dom.js";
import { ago, count, spans } from "/assets/format.js";

const FEW = 50;
export class Clients {
  constructor() {
    this.order = { key: "id", down: false };
    this.all = false;
    this.open = new Set();
    this.rows = new Map();
    this.search = h("input", { type: "search", placeholder: "number or reason", id: "client-search", oninput: () => this.draw() });
    this.filter = h(
      "select",
      { id: "client-filter", onchange: () => this.draw() },
      [
        ["", "all"],
        ["left-out", "ever left out"],
        ["training", "training now"],
        ["ok", "used last"],
      ].map(([value, name]) => h("option", { value }, name)),
    );
    this.tally = h("span", { class: "tally", role: "status" });
    this.heads = COLUMNS.map((column) =>
      h(
        "th",
        { scope: "col", class: column.num ? "num" : null },
        h("button", { type: "button", class: "sort", onclick: () => this.#sort(column.key) }, column.name),
      ),
    );
    this.body = h("tbody");
    this.table = h(
      "table",
      { id: "clients-table" },
      h("caption", { class: "hidden" }, "Clients"),
      h("thead", null, h("tr", null, this.heads)),
      this.body,
    );
    this.more = h("button", {
      type: "button",
      class: "below",
      onclick: () => {
        this.all = !this.all;
        this.draw();
      },
    });
    this.scroll = h("div", { class: "scroll tall clients", tabindex: 0, role: "region", "aria-label": "Clients" }, this.table);
    this.tools = h(
      "div",
      { class: "toolbar" },
      h("label", { class: "muted", for: "client-search" }, "Find"),
      this.search,
      h("label", { class: "muted", for: "client-filter" }, "Show"),
      this.filter,
      this.tally,
    );
    this.none = h("p", { class: "quiet-empty" });
    $("client-table").append(this.tools, this.scroll, this.none, this.more);
    this.problemsKey = null;
    this.allProblems = false;
  }

  #sort(key) {
    this.order = { key, down: this.order.key === key ? !this.order.down : key !== "id" && key !== "status" && key !== "modalities" };
    this.draw();
  }

  update(run) {
    this.run = run;
    this.clients = run.clients();
    this.draw();
    this.#problems(run);
  }

  /** What changes by the second: when clients were last seen. */
  tick() {
    for (const { cells, client } of this.rows.values()) {
      if (client.lastSeen !== null) setText(cells.seen.firstChild, ago(client.lastSeen));
    }
  }

  draw() {
    if (!this.clients) return;
    const wanted = this.search.value.trim().toLowerCase();
    const show = this.filter.value;
    const found = this.clients.filter(
      (client) =>
        (!wanted ||
          String(client.id) === wanted ||
          `client ${client.id}` === wanted ||
          client.problems.some((p) => `${p.code} ${p.reason}`.toLowerCase().includes(wanted))) &&
        (!show || (show === "left-out" ? client.problems.length : show === "ok" ? client.record?.status === "ok" : client.status === show)),
    );
    const { sort } = COLUMNS.find((column) => column.key === this.order.key);
    const rank = (a, b) => {
      const [x, y] = [sort(a), sort(b)];
      if (x === null || x === undefined) return y === null || y === undefined ? a.id - b.id : 1;
      if (y === null || y === undefined) return -1;
      const least = typeof x === "string" ? x.localeCompare(y) : x - y;
      return (this.order.down ? -least : least) || a.id - b.id;
    };
    found.sort(rank);
    this.heads.forEach((head, i) => {
      if (COLUMNS[i].key === this.order.key) head.setAttribute("aria-sort", this.order.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    const shown = this.all ? found : found.slice(0, FEW);
    const total = this.clients.length;
    setText(
      this.tally,
      total
        ? found.length === total
          ? `${count(total)} ${total === 1 ? "client" : "clients"}`
          : `${count(found.length)} of ${count(total)} clients`
        : "",
    );
    this.tools.hidden = total < 2;
    this.scroll.hidden = !shown.length;
    this.none.hidden = shown.length > 0;
    setText(this.none, total ? "No client is like that." : "No client has been asked yet.");
    this.more.hidden = found.length <= FEW;
    setText(this.more, this.all ? `Show the first ${FEW}` : `Show all ${count(found.length)}`);
    const tests = this.clients.some((client) => client.test);
    this.heads[COLUMNS.findIndex((column) => column.key === "test")].hidden = !tests;
    const wish = [];
    for (const client of shown) {
      const row = this.#row(client, tests);
      wish.push(row.main, ...(row.more ? [row.more] : []));
    }
    const same = wish.length === this.body.children.length && wish.every((row, i) => row === this.body.children[i]);
    if (!same) {
      const focused = document.activeElement;
      this.body.replaceChildren(...wish);
      if (this.body.contains(focused)) focused.focus({ preventScroll: true });
    }
    const left = this.clients.reduce((sum, client) => sum + client.problems.length, 0);
    setText(
      $("clients-note"),
      total
        ? `${this.run.rounds.length > 1 ? "What each told in its last round" : "Their signals follow with the first round"}${left ? `; ${count(left)} ${left === 1 ? "update was" : "updates were"} left out so far` : ""}.`
        : "",
    );
  }

  #row(client, tests) {
    let row = this.rows.get(client.id);
    if (!row) {
      const button = h(
        "button",
        { type: "button", class: "link", "aria-expanded": "false", onclick: () => this.#toggle(client.id) },
        `client ${client.id}`,
      );
      const cells = {};
      const main = h(
        "tr",
        { "data-client": client.id },
        h("th", { scope: "row", class: "who" }, button),
        COLUMNS.slice(1).map((column) => {
          cells[column.key] = h("td", {
            class: [column.num ? "num" : "", column.key === "modalities" ? "wide" : ""].join(" ").trim() || null,
            "data-name": column.key === "status" ? null : column.name,
          });
          return cells[column.key];
        }),
      );
      row = { main, cells, button };
      this.rows.set(client.id, row);
    }
    row.client = client;
    for (const [key, make] of Object.entries(CELLS)) {
      const value = make(client);
      if (!row.cells[key].firstChild?.isEqualNode(value)) row.cells[key].replaceChildren(value);
    }
    row.cells.test.hidden = !tests;
    const open = this.open.has(client.id);
    row.button.setAttribute("aria-expanded", String(open));
    if (open) {
      row.more ??= h("tr", { class: "more" }, h("td", { colspan: COLUMNS.length }));
      row.more.firstChild.replaceChildren(...details(client).filter(Boolean));
    } else {
      row.more = null;
    }
    return row;
  }

  #toggle(id) {
    if (this.open.has(id)) this.open.delete(id);
    else this.open.add(id);
    this.draw();
  }

  #problems(run) {
    const problems = run.problems();
    const key = `${run.id} ${problems.length} ${run.rounds.length} ${this.allProblems}`;
    if (key === this.problemsKey) return;
    this.problemsKey = key;
    const shown = this.allProblems ? problems : problems.slice(0, 10);
    const place = $("problems");
    if (!problems.length) {
      place.replaceChildren();
      return;
    }
    const more =
      problems.length > 10
        ? h(
            "button",
            {
              type: "button",
              class: "below",
              onclick: () => {
                this.allProblems = !this.allProblems;
                this.#problems(run);
              },
            },
            this.allProblems ? "Show the latest 10" : `Show all ${count(problems.length)}`,
          )
        : null;
    place.replaceChildren(
      ...[
        h("h3", null, "Updates that were left out or not used as they came, and why"),
        h(
          "div",
          { class: "scroll tall", tabindex: 0, role: "region", "aria-label": "Updates that were left out" },
          h(
            "table",
            { id: "problems-table" },
            h("caption", { class: "hidden" }, "Updates that were left out"),
            h(
              "thead",
              null,
              h(
                "tr",
                null,
                ["Client", "State", "Rounds", "Code", "Reason"].map((name) => h("th", { scope: "col" }, name)),
              ),
            ),
            h(
              "tbody",
              null,
              shown.map((p) =>
                h(
                  "tr",
                  null,
                  h("th", { scope: "row" }, `client ${p.client}`),
                  h("td", null, pill(p.status)),
                  h("td", null, spans(p.rounds)),
                  h("td", null, p.code ? h("code", null, p.code) : "–"),
                  h("td", { class: "reason" }, p.reason || "no reason was given"),
                ),
              ),
            ),
          ),
        ),
        more,
      ].filter(Boolean),
    );
  }
}
