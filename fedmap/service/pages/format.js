// Numbers for people. What is not known is a dash, never a zero.

export const MISSING = "–";
const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

/** F1 scores and losses: three decimals. */
export const score = (value) => (known(value) ? value.toFixed(3) : MISSING);

/** A round number of an axis. */
export const short = (value) => String(Number(value.toPrecision(3)));

/** A share in [0, 1] as a percentage. */
export const percent = (value) => (known(value) ? `${(100 * value).toFixed(value >= 0.9995 || value === 0 ? 0 : 1)} %` : MISSING);

/** Whole numbers, with thin spaces between thousands. */
export const count = (value) =>
  known(value)
    ? Math.round(value)
        .toString()
        .replace(/\B(?=(\d{3})+$)/g, "\u202f")
    : MISSING;

/** Bytes in decimal units. */
export function bytes(value) {
  if (!known(value)) return MISSING;
  const units = ["B", "kB", "MB", "GB", "TB"];
  let power = 0;
  let rest = value;
  while (rest >= 999.5 && power < units.length - 1) {
    rest /= 1000;
    power += 1;
  }
  return `${power === 0 || rest >= 100 ? Math.round(rest) : Number(rest.toPrecision(3))} ${units[power]}`;
}

/** Seconds: "40 ms", "0.4 s", "12 s", "3 min 05 s", "2 h 07 min". */
export function duration(seconds) {
  if (!known(seconds)) return MISSING;
  if (seconds === 0) return "0 s";
  if (seconds < 0.0995) return `${Math.max(1, Math.round(1000 * seconds))} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
  return `${Math.floor(whole / 3600)} h ${String(Math.floor((whole % 3600) / 60)).padStart(2, "0")} min`;
}

/** Any number with four significant digits. */
export function plain(value) {
  if (!known(value)) return MISSING;
  if (Number.isInteger(value)) return count(value);
  const size = Math.abs(value);
  return size !== 0 && (size < 0.001 || size >= 1e6) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

/** The time of day of unix seconds; with the date where it is not today's. */
export function clock(time, now = Date.now() / 1000) {
  if (!known(time)) return MISSING;
  const date = new Date(1000 * time);
  const day = (d) => [d.getFullYear(), String(d.getMonth() + 1).padStart(2, "0"), String(d.getDate()).padStart(2, "0")].join("-");
  const hours = [date.getHours(), date.getMinutes(), date.getSeconds()].map((part) => String(part).padStart(2, "0")).join(":");
  return day(date) === day(new Date(1000 * now)) ? hours : `${day(date)} ${hours}`;
}

/** How long ago, in words that a glance takes in. */
export function ago(time, now = Date.now() / 1000) {
  if (!known(time)) return MISSING;
  const seconds = Math.max(0, now - time);
  if (seconds < 2) return "now";
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} days ago`;
}

/** Whole numbers in ascending order as spans: "2, 5–7". */
export function spans(numbers) {
  const found = [];
  for (const number of numbers) {
    if (found.length && found.at(-1)[1] === number - 1) found.at(-1)[1] = number;
    else found.push([number, number]);
  }
  return found.map(([a, b]) => (a === b ? `${a}` : `${a}–${b}`)).join(", ");
}

/** A diagnostic's key as words. */
export const words = (key) => String(key).replaceAll(/[-_]+/g, " ");

/** The last part of a dotted path. */
export const lastPart = (path) =>
  String(path ?? "")
    .split(".")
    .pop();
