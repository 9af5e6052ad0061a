// What is known about one run: the document of the server front, brought up to date by its events. No page elements here.

const sum = (values) => values.reduce((total, value) => total + value, 0);
const known = (value) => value !== null && value !== undefined && Number.isFinite(value);
const isActive = (status) => status === "waiting" || status === "running";

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
  const wish = (record) => [(record.validation_tuned ?? record.validation).macro_f1, record.validation.loss === null ? -Infinity : -record.validation.loss];
  return scored.reduce((best, record) => {
    const [a, b] = [wish(record), wish(best)];
    return a[0] > b[0] || (a[0] === b[0] && a[1] > b[1]) ? record : best;
  });
}

export class Run {
  constructor(document) {
    this.notes = []; // {time, round, text}
    this.answers = new Map(); // client id -> what it told in the present round
    this.lastSeen = new Map(); // client id -> unix seconds
    this.asked = [];
    this.present = null; // the round that is under way
    this.phaseSince = null;
    this.startedAt = null;
    this.endedAt = null;
    this.roundEnds = []; // unix seconds at the end of rounds, as far as known
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
    this.startedAt ??= document.started ?? null;
    this.waitingFor = document.waiting_for ?? null;
    for (const [id, time] of Object.entries(document.last_seen ?? {})) this.#seen(Number(id), time);
  }

  get active() {
    return isActive(this.status);
  }

  /** Take one event; returns false where it changed nothing that can be seen. */
  apply(kind, event) {
    const time = event.time ?? null;
    if (kind === "waiting") {
      if (this.active && this.present === null) this.waitingFor = event.text ?? event.waiting_for ?? event.for ?? this.waitingFor;
    } else if (kind === "start") {
      this.numRounds = event.num_rounds;
      if (this.status === "waiting") this.status = "running";
      this.waitingFor = null;
      this.trainingSince = time;
    } else if (kind === "clients") {
      this.present = event.round_index;
      this.asked = event.client_ids ?? [];
      this.answers = new Map();
      this.phaseSince = time;
      if (this.status === "waiting") this.status = "running";
      this.waitingFor = null;
    } else if (kind === "client") {
      if (event.round_index === this.present) this.answers.set(event.client_id, event);
      this.#seen(event.client_id, time);
    } else if (kind === "round") {
      this.#record(event.record, time);
    } else if (kind === "note") {
      this.notes.push({ time, round: this.present, text: event.text });
    } else if (kind === "finished" || kind === "failed") {
      this.status = kind;
      this.reason = event.reason ?? "";
      this.endedAt = time;
      this.present = null;
      this.asked = [];
    } else {
      return false;
    }
    return true;
  }

  #seen(id, time) {
    if (known(time) && time > (this.lastSeen.get(id) ?? 0)) this.lastSeen.set(id, time);
  }

  #record(record, time) {
    this.rounds = [...this.rounds.filter((old) => old.round_index < record.round_index), record];
    if (record.round_index === this.present) {
      this.present = null;
      this.asked = [];
    }
    if (known(time)) this.roundEnds.push({ round: record.round_index, time });
    this.phaseSince = time;
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
    if (this.status === "interrupted") return `Stopped after ${this.roundsDone} of ${this.numRounds ?? "?"} rounds; the files up to there are true`;
    if (this.status === "waiting") return "Waiting for the first round to begin";
    if (this.present !== null) return `Round ${this.present} of ${this.numRounds ?? "?"}: ${this.answers.size} of ${this.asked.length} clients have answered`;
    if (this.numRounds && this.roundsDone >= this.numRounds) return "All rounds are done; the chosen model is being scored and saved";
    if (!this.rounds.length) return "The initial model is being scored";
    return `Round ${this.roundsDone} of ${this.numRounds ?? "?"} is done`;
  }

  /** All clients in the order of their numbers, each with what the rounds and the events tell. */
  clients() {
    const found = new Map();
    const get = (id) => {
      if (!found.has(id)) found.set(id, { id, asked: 0, ok: 0, problems: [], weights: [], record: null, lastRecord: null, lastRound: null });
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
          client.problems.push({ round: round.round_index, status: record.status, reason: record.reason });
        }
      }
    }
    for (const id of this.asked) get(id);
    for (const id of this.lastSeen.keys()) get(id);
    for (const id of Object.keys(this.final?.clients ?? {})) get(Number(id));
    return [...found.values()].sort((a, b) => a.id - b.id).map((client) => {
      const answer = this.present === null ? null : this.answers.get(client.id) ?? null;
      const shown = answer ?? client.lastRecord;
      const training = this.active && this.asked.includes(client.id);
      return {
        ...client,
        status: training ? (answer ? "answered" : "training") : client.record?.status ?? "idle",
        shown,
        signals: shown?.signals ?? {},
        lastSeen: this.lastSeen.get(client.id) ?? null,
        test: this.final?.clients?.[client.id] ?? null,
      };
    });
  }

  /** Every update that was left out, the latest first. */
  problems() {
    return this.rounds.flatMap((round) => round.clients.filter((client) => client.status !== "ok")
      .map((client) => ({ round: round.round_index, client: client.client_id, status: client.status, reason: client.reason }))).reverse();
  }
}
