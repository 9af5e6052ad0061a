// What is known about one run: the document of the server front, brought up to date by its events. No page elements here.

const sum = (values) => values.reduce((total, value) => total + value, 0);
const known = (value) => value !== null && value !== undefined && Number.isFinite(value);
/** Whether a run with this status may still change. */
export const isActive = (status) => status === "waiting" || status === "running";

/** The mean training loss of a round's clients, weighted by their rows; null if none was reported. */
export function trainLoss(record) {
  const told = record.clients.filter((client) => client.status === "ok" && known(client.signals?.train_loss) && client.num_examples);
  const rows = sum(told.map((client) => client.num_examples));
  return rows ? sum(told.map((client) => client.signals.train_loss * client.num_examples)) / rows : null;
}

/** The bytes of a round in one direction; null where no client's were measured. */
export function bytesOf(record, direction) {
  const told = record.clients.map((client) => client[direction]).filter(known);
  return told.length ? sum(told) : null;
}

/** The round whose model counts: best macro-F1 on validation at tuned thresholds, then the loss, then the earliest. */
export function bestOf(rounds) {
  const scored = rounds.filter((record) => record.validation);
  if (!scored.length) return rounds.at(-1) ?? null;
  const wish = (record) => [
    (record.validation_tuned ?? record.validation).macro_f1,
    record.validation.loss === null ? -Infinity : -record.validation.loss,
  ];
  return scored.reduce((best, record) => {
    const [a, b] = [wish(record), wish(best)];
    return a[0] > b[0] || (a[0] === b[0] && a[1] > b[1]) ? record : best;
  });
}

const problemOf = ({ status, code, reason }) => ({ status, code: code ?? "", reason });

/** What was found of an update that was used all the same. */
const marksOf = (record) => Object.entries(record.remarks ?? {}).map(([code, reason]) => ({ status: "marked", code, reason }));

export class Run {
  constructor(document) {
    this.notes = []; // {time, round, text}
    this.answers = new Map(); // client id -> what it told in the present round
    this.lastSeen = new Map(); // client id -> unix seconds
    this.lost = new Map(); // client id -> what became of its answer in the present round
    this.asked = [];
    this.present = null; // the round that is under way
    this.told = 0; // the newest round that an event spoke of
    this.phaseSince = null;
    this.joined = [];
    this.expected = 0;
    this.load(document);
  }

  /** Take over a document; what only events tell stays. */
  load(document) {
    this.document = document;
    this.id = document.id;
    this.current = Boolean(document.current);
    this.status = document.status;
    this.reason = document.reason ?? "";
    this.labels = document.label_names ?? [];
    this.rounds = document.rounds ?? [];
    this.final = document.final ?? null;
    this.numRounds = document.num_rounds ?? null;
    this.config = document.config ?? {};
    this.versions = document.versions ?? {};
    this.startedAt = document.started ?? null;
    this.joined = document.joined ?? this.joined;
    this.expected = document.expected ?? this.expected;
  }

  get active() {
    return isActive(this.status);
  }

  /**
   * Take one event.
   * @param {boolean} old whether the document holds what it says: then only what no document tells is taken, such as notes and times
   */
  apply(kind, event, old = false) {
    const time = event.time ?? null;
    if (kind === "opened" || kind === "start" || kind === "resumed") {
      this.present = null;
      this.asked = [];
      if (event.num_rounds) this.numRounds = event.num_rounds;
      if (kind === "resumed") this.notes.push({ time, round: event.round_index, text: `The run goes on after round ${event.round_index}` });
      if (!old) this.status = kind === "opened" ? "waiting" : "running";
    } else if (kind === "waiting") {
      this.joined = event.joined ?? [];
      this.expected = event.expected ?? 0;
    } else if (kind === "clients") {
      this.present = event.round_index;
      this.told = event.round_index;
      this.asked = event.client_ids ?? [];
      this.answers = new Map();
      this.lost = new Map();
      this.phaseSince = time;
      if (!old) this.status = "running";
    } else if (kind === "client") {
      if (event.round_index === this.present) this.answers.set(event.client_id, event);
      this.#seen(event.client_id, time);
    } else if (kind === "lost") {
      if (event.round_index === this.present) {
        this.lost.set(event.client_id, event);
        this.answers.delete(event.client_id); // refused when all were compared
      }
    } else if (kind === "round") {
      if (!old) this.rounds = [...this.rounds.filter((one) => one.round_index < event.record.round_index), event.record];
      this.told = event.record.round_index;
      this.present = null;
      this.asked = [];
    } else if (kind === "note") {
      this.notes.push({ time, round: this.present ?? this.told, text: String(event.text) });
    } else if (kind === "finished" || kind === "failed") {
      this.present = null;
      this.asked = [];
      if (!old) {
        this.status = event.kind === "KeyboardInterrupt" ? "interrupted" : kind;
        this.reason = event.reason ?? "";
      }
    }
  }

  #seen(id, time) {
    if (known(time) && time > (this.lastSeen.get(id) ?? 0)) this.lastSeen.set(id, time);
  }

  get last() {
    return this.rounds.at(-1) ?? null;
  }

  get best() {
    return bestOf(this.rounds);
  }

  get roundsDone() {
    return this.last?.round_index ?? 0;
  }

  /** Seconds until the last round will have ended, from the latest rounds' wall clock; null before one has ended. */
  secondsLeft(now) {
    if (!this.active || !this.numRounds) return null;
    const trained = this.rounds.filter((record) => record.round_index > 0).slice(-5);
    if (!trained.length) return this.document.seconds_left ?? null;
    const each = sum(trained.map((record) => sum(Object.values(record.seconds)))) / trained.length;
    const since = this.present !== null && known(this.phaseSince) ? Math.max(0, now - this.phaseSince) : 0;
    return Math.max(0, each * (this.numRounds - this.roundsDone) - Math.min(since, each));
  }

  /** One sentence: what happens now. */
  phase() {
    if (this.status === "finished") return `Finished after ${this.roundsDone} ${this.roundsDone === 1 ? "round" : "rounds"}`;
    if (this.status === "failed") return `Failed after ${this.roundsDone} of ${this.numRounds ?? "?"} rounds`;
    if (this.status === "interrupted") return `Stopped after ${this.roundsDone} of ${this.numRounds ?? "?"} rounds`;
    if (this.status === "waiting")
      return this.expected ? `Waiting for clients: ${this.joined.length} of ${this.expected} have joined` : "Getting ready";
    if (this.present !== null) {
      const where = `Round ${this.present} of ${this.numRounds ?? "?"}`;
      if (this.answers.size + this.lost.size >= this.asked.length)
        return `${where}: the answers are aggregated and the new model is scored`;
      return `${where}: ${this.answers.size} of ${this.asked.length} clients have answered${this.lost.size ? `, ${this.lost.size} left out` : ""}`;
    }
    if (this.numRounds && this.roundsDone >= this.numRounds) return "All rounds are done; the chosen model is being scored and saved";
    if (!this.rounds.length) return "The initial model is being scored";
    return `Round ${this.roundsDone} of ${this.numRounds ?? "?"} is done`;
  }

  /** All clients in the order of their numbers, each with what the rounds and the events tell. */
  clients() {
    const found = new Map();
    const get = (id) => {
      // made where it is first heard of
      if (!found.has(id))
        found.set(id, { id, asked: 0, ok: 0, problems: [], weights: [], record: null, lastRecord: null, lastRound: null });
      return found.get(id);
    };
    for (const round of this.rounds) {
      for (const record of round.clients) {
        const client = get(record.client_id);
        client.asked += 1;
        client.record = record;
        client.lastRound = round.round_index;
        if (record.status === "ok") {
          client.ok += 1;
          client.lastRecord = record;
          if (known(record.weight)) client.weights.push(record.weight);
        } else {
          client.problems.push({ round: round.round_index, ...problemOf(record) });
        }
        for (const mark of marksOf(record)) client.problems.push({ round: round.round_index, ...mark });
      }
    }
    for (const id of [...this.asked, ...this.joined]) get(id);
    for (const id of this.lastSeen.keys()) get(id);
    for (const id of Object.keys(this.final?.clients ?? {})) get(Number(id));
    return [...found.values()]
      .sort((a, b) => a.id - b.id)
      .map((client) => {
        const answer = this.present === null ? null : (this.answers.get(client.id) ?? null);
        const shown = answer ?? client.lastRecord;
        const training = this.active && this.asked.includes(client.id);
        return {
          ...client,
          status: training
            ? answer
              ? "answered"
              : (this.lost.get(client.id)?.status ?? "training")
            : (client.record?.status ?? (this.joined.includes(client.id) ? "joined" : "idle")),
          shown,
          signals: shown?.signals ?? {},
          lastSeen: this.lastSeen.get(client.id) ?? null,
          test: this.final?.clients?.[client.id] ?? null,
        };
      });
  }

  /** Updates that were left out, or not used as they came: one entry per client and reason with the rounds, the latest first. */
  problems() {
    const found = new Map();
    for (const round of this.rounds) {
      for (const record of round.clients) {
        const client = record.client_id;
        for (const problem of [...(record.status === "ok" ? [] : [problemOf(record)]), ...marksOf(record)]) {
          const key = JSON.stringify([client, problem.status, problem.code, problem.reason]);
          if (!found.has(key)) found.set(key, { client, ...problem, rounds: [] });
          found.get(key).rounds.push(round.round_index);
        }
      }
    }
    return [...found.values()].sort((a, b) => b.rounds.at(-1) - a.rounds.at(-1) || a.client - b.client);
  }
}
