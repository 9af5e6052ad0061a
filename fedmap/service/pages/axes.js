// What charts share: round numbers along an axis, and the signs of series.

import { s } from "/assets/dom.js";

/** Round numbers from low to high, about so many. */
export function ticks(low, high, about) {
  const span = high - low || Math.abs(high) || 1;
  const rough = span / Math.max(1, about);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((nice) => nice * power >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) found.push(Number((i * step).toPrecision(12)));
  return { values: found, step };
}

/** Round ends of an axis that holds all values, and the ticks between them. */
export function axis(values, about, fromZero) {
  let low = fromZero ? 0 : values.reduce((a, b) => Math.min(a, b), Infinity);
  let high = values.reduce((a, b) => Math.max(a, b), -Infinity);
  if (!values.length || (low === 0 && high === 0)) [low, high] = [0, 1];
  else if (low === high) [low, high] = [Math.min(low, 0), Math.max(high, 0)];
  for (let round = 0; round < 3; round += 1) {
    // wider ends can mean a wider step
    const { step } = ticks(low, high, about);
    [low, high] = [Math.floor(low / step + 1e-9) * step, Math.ceil(high / step - 1e-9) * step];
  }
  return { low, high, values: ticks(low, high, about).values };
}

/** The sign of a series in a legend: its line, or a block where it is drawn as bars. */
export const swatch = (series, block) =>
  s(
    "svg",
    { viewBox: "0 0 22 10", class: `tone-${series.tone}`, "aria-hidden": "true" },
    block
      ? s("rect", { class: "swatch-block", x: 4, y: 0, width: 12, height: 10, rx: 2 })
      : s("line", { class: `swatch dash-${series.dash ?? 0}`, x1: 1, x2: 21, y1: 5, y2: 5 }),
  );
