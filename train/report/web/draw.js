"use strict";
// Elements, numbers, tables and figures. Texts are set as text, never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 440, HEIGHT = 330;
const EDGE = { left: 58, right: 14, top: 12, bottom: 44 };
const COLORS = 6;
const several = data.runs.length > 1;

// Elements ----------------------------------------------------------------

const byId = (id) => document.getElementById(id);

function make(space, name, attributes, children) {
  const node = space
    ? document.createElementNS(space, name)
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.flat().filter((child) => child !== null));
  return node;
}

const el = (name, attributes = {}, ...children) =>
  make(null, name, attributes, children);
const draw = (name, attributes = {}, ...children) =>
  make(SVG, name, attributes, children);

const color = (run) => `r${run % COLORS}`;
const dash = (run) => `dash${run % COLORS}`;

// Numbers -----------------------------------------------------------------

const fixed = (value, digits) =>
  value === null ? "–" : value.toFixed(digits).replace("-", "−");
const percent = (share, digits = 0) => `${fixed(100 * share, digits)} %`;
const named = (name) => data.columns[name];

function formatted(name, value) {
  const { scale, digits } = named(name);
  return fixed(value === null ? null : scale * value, digits);
}

const tauText = (tau) => (tau === null ? "∞ (the mean)" : String(tau));

// Round numbers between two ends, about as many as asked for.
function ticks(low, high, count = 5) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((x) => x * power >= rough * 0.999) * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) {
    found.push(Number((i * step).toPrecision(12)));
  }
  return found;
}

// Ends of an axis: the values, and a little room.
function extent(values, least = -Infinity, most = Infinity) {
  const finite = values.filter((x) => x !== null && Number.isFinite(x));
  if (!finite.length) return [0, 1];
  let low = Math.min(...finite), high = Math.max(...finite);
  const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 0.5;
  low = Math.max(low - room, least);
  high = Math.min(high + room, most);
  return low < high ? [low, high] : [low - 0.5, high + 0.5];
}

// Tables ------------------------------------------------------------------

function cellOf(value) {
  if (value === null || typeof value !== "object") {
    return el("td", {}, value === null ? "–" : String(value));
  }
  if ("text" in value) return el("td", { class: "text", dir: "auto" }, value.text);
  const shown = value.mark ? el("strong", {}, value.value) : value.value;
  if (!value.interval) return el("td", {}, shown);
  return el("td", {}, shown, el("small", {}, value.interval));
}

const swatch = (run) =>
  draw("svg", { class: `swatch ${color(run)}`, viewBox: "0 0 26 14", "aria-hidden": "true" },
    draw("path", { class: `line ${dash(run)}`, d: "M0 7H26" }),
    marker(run, 13, 7, "now", 5));

function tableOf(spec, kind = "") {
  const head = spec.head.map((text) => el("th", { scope: "col" }, text));
  const rows = spec.rows.map((row, i) => {
    const [first, ...rest] = row;
    const plain = first === null || typeof first !== "object";
    const mark = spec.runs && several ? swatch(spec.runs[i]) : null;
    const start = plain ? el("th", { scope: "row" }, mark, String(first)) : cellOf(first);
    const differs = spec.differ && several && spec.differ[i] ? "differs" : null;
    return el("tr", { class: differs }, start, rest.map(cellOf));
  });
  const table = el("table", { class: kind || null },
    el("caption", {}, spec.caption),
    el("thead", {}, el("tr", {}, head)),
    el("tbody", {}, rows));
  return el("div",
    { class: "scroll", role: "region", "aria-label": spec.caption, tabindex: "0" }, table);
}

// Figures -----------------------------------------------------------------

// A figure with the same numbers as a table, whose state stays when it is redrawn.
class Figure {
  constructor(parent, run = null) {
    this.caption = el("figcaption");
    this.picture = el("div");
    this.table = el("div");
    this.details = el("details", {}, el("summary", {}, "Table of this figure"), this.table);
    const kind = run === null ? null : color(run);
    parent.append(el("figure", { class: kind }, this.caption, this.picture, this.details));
  }

  show(title, plot, summary, table) {
    this.caption.textContent = title;
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", `${title}. ${summary}`);
    this.picture.replaceChildren(plot);
    this.table.replaceChildren(tableOf({ caption: title, ...table }));
  }
}

// Axes with a grid. Returns the picture, a layer for marks, and both scales.
function axes(x, y, bottom = EDGE.bottom) {
  const picture = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}` });
  const right = WIDTH - EDGE.right, low = HEIGHT - bottom;
  const sx = (v) => EDGE.left + ((v - x.ends[0]) / (x.ends[1] - x.ends[0])) * (right - EDGE.left);
  const sy = (v) => low - ((v - y.ends[0]) / (y.ends[1] - y.ends[0])) * (low - EDGE.top);
  for (const value of x.ticks || ticks(...x.ends)) {
    picture.append(
      draw("path", { class: "grid", d: `M${sx(value)} ${EDGE.top}V${low}` }),
      draw("text", { class: "tick", x: sx(value), y: low + 17, "text-anchor": "middle" },
        (x.text || plainNumber)(value)));
  }
  for (const value of y.ticks || ticks(...y.ends)) {
    picture.append(
      draw("path", { class: "grid", d: `M${EDGE.left} ${sy(value)}H${right}` }),
      draw("text", { class: "tick", x: EDGE.left - 7, y: sy(value) + 4, "text-anchor": "end" },
        plainNumber(value)));
  }
  picture.append(
    draw("path", { class: "axis", fill: "none", d: `M${EDGE.left} ${EDGE.top}V${low}H${right}` }),
    draw("text", { x: (EDGE.left + right) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, x.title),
    draw("text", { x: 0, y: 0, "text-anchor": "middle",
      transform: `translate(14 ${(EDGE.top + low) / 2}) rotate(-90)` }, y.title));
  const layer = draw("g");
  picture.append(layer);
  return { picture, layer, sx, sy, low, right };
}

const plainNumber = (value) => String(Number(value.toPrecision(6))).replace("-", "−");

const SHAPES = [
  (r) => `M${-r} 0A${r} ${r} 0 1 0 ${r} 0A${r} ${r} 0 1 0 ${-r} 0Z`,
  (r) => `M${-r} ${-r}H${r}V${r}H${-r}Z`,
  (r) => `M0 ${-1.4 * r}L${1.4 * r} 0L0 ${1.4 * r}L${-1.4 * r} 0Z`,
  (r) => `M0 ${-1.3 * r}L${1.3 * r} ${r}H${-1.3 * r}Z`,
  (r) => `M0 ${1.3 * r}L${1.3 * r} ${-r}H${-1.3 * r}Z`,
  (r) => `M${-r} ${-1.3 * r}H${r}L${1.4 * r} 0L${r} ${1.3 * r}H${-r}L${-1.4 * r} 0Z`,
];

function marker(run, x, y, kind, size, title = null) {
  return draw("path",
    { class: kind, d: SHAPES[run % COLORS](size), transform: `translate(${x} ${y})` },
    title === null ? null : draw("title", {}, title));
}

const line = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x} ${y}`).join("");
