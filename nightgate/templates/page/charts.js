// What the pages share: elements, numbers, colours, tables, and charts of nights on uPlot.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

/** An element. Texts come from data and may hold anything: they only ever become text nodes. */
function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value != null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child != null && child !== ""));
  return made;
}

/** The columns of a stored frame as arrays: repeated texts are stored once, empty columns not at all. */
function frame(stored) {
  const empty = new Array(stored.rows).fill(null);
  const whole = (column) => (Array.isArray(column) ? column : column.at.map((at) => (at === null ? null : column.of[at])));
  const columns = Object.fromEntries(Object.entries(stored.columns).map(([name, column]) => [name, whole(column)]));
  return new Proxy(columns, { get: (all, name) => (name === "length" ? stored.rows : all[name] || empty) });
}

// --- numbers and words ---

const NONE = "n/a";
const NATURAL = new Intl.Collator("en", { numeric: true });
const score = (value) => (value == null ? NONE : value.toFixed(4));
const gap = (value) => (value == null ? NONE : (value < 0 ? "−" : "+") + Math.abs(value).toFixed(4));
const count = (value) => (value == null ? NONE : value.toLocaleString("en"));
const times = (value) => (value == null ? NONE : `${value.toFixed(2)}×`);
const interval = (low, high) => (low == null || high == null ? "" : `${low.toFixed(4)} to ${high.toFixed(4)}`);
const seconds = (day) => Date.parse(`${day}T00:00:00Z`) / 1000;
const moment = (text) => (text ? text.slice(0, 16).replace("T", " ") : NONE);

function duration(value) {
  if (value == null) return NONE;
  if (value < 60) return `${value.toFixed(value < 10 ? 1 : 0)} s`;
  const minutes = Math.round(value / 60);
  if (minutes < 60) return `${minutes} min`;
  return `${Math.floor(minutes / 60)} h${minutes % 60 ? ` ${minutes % 60} min` : ""}`;
}

const TONES = { promoted: "good", failed: "bad", missed: "bad", waiting: "warn", cancelled: "warn" };
const SIGNS = { good: "✓", bad: "✗", warn: "!", calm: "–" };

function mark(status, tone = TONES[status] || "calm") {
  return el("span", { class: `mark ${tone}` }, `${SIGNS[tone]} ${status.replaceAll("_", " ")}`);
}

function table(header, rows, align = "") {
  const line = (cells) => el("tr", {}, cells.map((cell) => el("td", {}, cell instanceof Node ? cell : String(cell ?? ""))));
  const box = el("div", { class: `box${rows.length > 16 ? " long" : ""}`, tabindex: rows.length > 16 ? 0 : null });
  const names = header.map((name) => el("th", { scope: "col" }, name));
  box.append(el("table", { class: align }, el("thead", {}, el("tr", {}, names)), el("tbody", {}, rows.map(line))));
  return box;
}

/** The figures at the head: name, value, detail, tone. */
function tiles(of) {
  const tile = ([name, value, detail, tone]) =>
    el("div", { class: "tile" }, el("span", {}, name), el("b", { class: tone }, String(value)), el("span", {}, detail));
  $("tiles").replaceChildren(...of.map(tile));
}

/** A table behind a word, which is made when it is opened. */
function folded(summary, make) {
  const made = el("details", {}, el("summary", {}, summary));
  made.addEventListener("toggle", () => made.childElementCount > 1 || made.append(make()), { once: true });
  return made;
}

// --- colours: those of the style, which knows light and dark ---

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const dashes = (at) => [[], [7, 4], [2, 3], [10, 3, 2, 3]][Math.floor(at / 4) % 4];
const SERIES = 8;

const charts = new Set();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach((one) => one.redraw(false)));

// --- charts ---

/**
 * A chart with buttons for its lines, a cursor for mouse and keyboard, and its numbers as a table.
 *
 * `lines`: {label, values, colour, dash, bars, hidden, ghost}, where a ghost only counts for the range. `at` and `names`:
 * where on the x axis, and in words. `breaks`: places before which lines break. `choose(place)`: Enter or a click.
 */
function chart(host, { label, at, names, lines, format = score, height = 220, time = true, breaks = [], floor, ...more }) {
  const shown = lines.filter((line) => !line.ghost);
  const values = shown.map(() => el("b", {}, ""));
  const plot = el("div", { class: "plot", tabindex: 0, role: "group", "aria-roledescription": "chart" });
  plot.setAttribute("aria-label", `${label}. Arrow keys move, plus and minus zoom${more.choose ? ", Enter chooses" : ""}.`);

  const across = (u, places) => {
    const x = (place) => Math.round(u.valToPos(at[place], "x", true));
    return breaks.filter((place) => place > 0).map((place) => [x(place - 1) + 1, x(place)]);
  };
  const series = lines.map((line) => ({
    label: line.label,
    show: !line.hidden,
    stroke: line.ghost ? null : () => colour(line.colour),
    fill: line.bars ? () => colour(line.colour) : null,
    width: line.bars || line.ghost ? 0 : line.width || 2,
    dash: line.dash,
    // Lines go on over nights without a score, and break where scores are not comparable.
    gaps: across,
    paths: line.ghost ? () => null : line.bars ? uPlot.paths.bars({ size: [0.8, 28], radius: 0.15 }) : uPlot.paths.linear(),
    auto: !line.aside,
    points: { show: !line.ghost && !line.bars && (line.points ?? at.length < 40), size: 6 },
  }));
  const grid = { stroke: () => colour("--line"), width: 1 };
  const axis = { stroke: () => colour("--muted"), grid, ticks: { show: false }, font: "12px system-ui, sans-serif" };
  const options = {
    width: 600,
    height,
    tzDate: (stamp) => uPlot.tzDate(new Date(stamp * 1e3), "Etc/UTC"),
    legend: { show: false },
    cursor: { ...(time && { sync: { key: "nights" } }), drag: { x: true, y: false }, points: { size: 8 } },
    scales: {
      x: { time, range: (u, low, high) => (time ? [low - 43200, high + 43200] : [low - 0.2, high + 0.2]) },
      y: { range: (u, low, high) => (more.range ? more.range(u, low, high) : limits(low, high, floor)) },
    },
    axes: [
      { ...axis, ...(time ? { space: 70, size: 42 } : { size: 28, incrs: [1, 2, 5, 10, 20, 50, 100] }) },
      { ...axis, size: 58, values: (u, ticks) => ticks.map(more.tick || short), incrs: more.incrs },
    ],
    series: [{}, ...series],
    hooks: {
      drawAxes: [(u) => breakLines(u, at, breaks), ...(more.under ? [more.under] : [])],
      draw: more.over ? [more.over] : [],
      setCursor: [(u) => tell(u.cursor.idx)],
    },
  };
  let last = null;
  const tell = (place) => {
    if (place === last) return;
    last = place;
    const near = place ?? more.resting?.() ?? null;
    shown.forEach((line, each) => (values[each].textContent = near === null || line.values[near] === null ? "" : format(line.values[near])));
    more.hover?.(near);
  };

  const u = new uPlot(options, [at, ...lines.map((line) => line.values)], plot);
  const legend = shown.map((line, each) =>
    el(
      "button",
      {
        type: "button",
        class: "key",
        "aria-pressed": String(!line.hidden),
        onclick: (event) => {
          const place = lines.indexOf(line) + 1;
          u.setSeries(place, { show: !u.series[place].show });
          event.currentTarget.setAttribute("aria-pressed", String(u.series[place].show));
        },
      },
      swatch(line),
      line.label,
      values[each],
    ),
  );
  const numbers = () =>
    table([more.first || "night", ...shown.map((line) => line.label)], backwards(names).map((place) => [
      names[place],
      ...shown.map((line) => format(line.values[place])),
    ]), "right");
  host.replaceChildren(plot, el("div", { class: "keys" }, legend), more.numbers === false ? "" : folded("Numbers as a table", numbers));

  let down = null;
  u.over.addEventListener("mousedown", (event) => (down = event.clientX));
  u.over.addEventListener("click", (event) => {
    if (down !== null && Math.abs(event.clientX - down) < 4 && u.cursor.idx != null) more.choose?.(u.cursor.idx);
  });
  plot.addEventListener("keydown", (event) => keyed(event, u, at, (place) => {
    say(`${names[place]}: ${more.inWords?.(place) || shown.map((line) => `${line.label} ${format(line.values[place])}`).join(", ")}`);
  }, more.choose));
  const one = {
    u,
    time,
    redraw: (paths = true) => u.redraw(paths),
    rest: () => ((last = undefined), tell(u.cursor.idx ?? null)),
    gone: () => (watch.disconnect(), charts.delete(one), u.destroy()),
  };
  const watch = new ResizeObserver(() => plot.clientWidth && u.setSize({ width: plot.clientWidth, height }));
  watch.observe(plot);
  charts.add(one);
  one.rest();
  return one;
}

/** The last place up to `from` that has a value. */
const latest = (values, from = values.length - 1) => values.slice(0, from + 1).findLastIndex((value) => value !== null);

const backwards = (of) => of.map((_, place) => of.length - 1 - place);

function swatch(line) {
  const drawn = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  drawn.setAttribute("class", "swatch");
  drawn.setAttribute("viewBox", "0 0 22 10");
  drawn.setAttribute("aria-hidden", "true");
  const stroke = document.createElementNS("http://www.w3.org/2000/svg", "path");
  stroke.setAttribute("d", "M0 5H22");
  stroke.setAttribute("stroke", `var(${line.colour})`);
  stroke.setAttribute("stroke-width", line.bars ? 8 : 3);
  stroke.setAttribute("stroke-dasharray", (line.dash || []).join(" "));
  drawn.append(stroke);
  return drawn;
}

/** Limits a little beyond the values, also where all are the same. */
function limits(low, high, floor) {
  if (low == null || high == null) return [floor ?? 0, 1];
  const pad = Math.max(0.08 * (high - low), 0.01 * Math.abs(high), 1e-3);
  return [floor ?? low - pad, high + pad];
}

const short = (tick) => (Math.abs(tick) >= 1000 ? count(tick) : String(+tick.toFixed(4)));

function breakLines(u, at, breaks) {
  const { ctx, bbox } = u;
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = colour("--warn");
  ctx.setLineDash([5 * devicePixelRatio, 4 * devicePixelRatio]);
  ctx.lineWidth = devicePixelRatio;
  ctx.textAlign = "center";
  ctx.textBaseline = "alphabetic";
  ctx.font = `${13 * devicePixelRatio}px system-ui, sans-serif`;
  for (const place of breaks) {
    const x = u.valToPos(place ? (at[place - 1] + at[place]) / 2 : at[0], "x", true);
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.beginPath();
    ctx.moveTo(x, bbox.top + 28 * devicePixelRatio);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    ctx.fillText("≠", x, bbox.top + 22 * devicePixelRatio);
  }
  ctx.restore();
}

/** Arrow keys, Home and End move the cursor; plus and minus zoom; Escape shows all; Enter or the space bar choose. */
function keyed(event, u, at, moved, choose) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { min, max } = u.scales.x;
  const end = at.length - 1;
  const place = u.cursor.idx ?? end;
  const moves = { ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: end, PageUp: place - 7, PageDown: place + 7 };
  if (event.key in moves) {
    const next = Math.min(end, Math.max(0, u.cursor.idx == null && event.key === "ArrowLeft" ? end : moves[event.key]));
    if (at[next] < min || at[next] > max) {
      const middle = Math.min(Math.max(at[next], at[0] + (max - min) / 2), at[end] - (max - min) / 2);
      zoom(u, middle - (max - min) / 2, middle + (max - min) / 2);
    }
    u.setCursor({ left: u.valToPos(at[next], "x"), top: u.over.clientHeight / 2 });
    moved(next);
  } else if (event.key === "+" || event.key === "-" || event.key === "=") {
    const by = event.key === "-" ? 2 : 0.5;
    const half = Math.max(((max - min) / 2) * by, 1.5 * (at[1] - at[0] || 1));
    zoom(u, Math.max(at[0], at[place] - half), Math.min(at[end], at[place] + half));
  } else if (event.key === "Escape") {
    zoom(u, at[0], at[end]);
  } else if ((event.key === "Enter" || event.key === " ") && choose && u.cursor.idx != null) {
    choose(u.cursor.idx);
  } else {
    return;
  }
  event.preventDefault();
}

/** All charts of nights show the same nights. */
function zoom(u, min, max) {
  const nightly = [...charts].filter((one) => one.time).map((one) => one.u);
  (nightly.includes(u) ? nightly : [u]).forEach((other) => other.setScale("x", { min, max }));
}

/** For screen readers. */
function say(text) {
  $("said").textContent = text;
}

/** The F1 of nights with intervals, champion and threshold; `nights` is a frame. */
function timeline(host, nights, more = {}) {
  const at = nights.night.map(seconds);
  const breaks = nights.break_before.flatMap((text, place) => (text ? [place] : []));
  const under = (u) => {
    const { ctx, bbox } = u;
    ctx.save();
    ctx.fillStyle = colour("--candidate");
    ctx.globalAlpha = 0.26;
    const day = u.valToPos(at[0] + 86400, "x", true) - u.valToPos(at[0], "x", true);
    const wide = Math.max(1.5, Math.min(0.6 * day, 9 * devicePixelRatio));
    for (let place = 0; place < at.length; place++) {
      const [low, high] = [nights.f1_ci_low[place], nights.f1_ci_high[place]];
      const x = u.valToPos(at[place], "x", true);
      if (low === null || high === null || x < bbox.left - wide || x > bbox.left + bbox.width + wide) continue;
      const top = u.valToPos(high, "y", true);
      ctx.fillRect(x - wide / 2, top, wide, u.valToPos(low, "y", true) - top);
    }
    ctx.restore();
    more.under?.(u);
  };
  const over = (u) => {
    const { ctx, bbox } = u;
    const ratio = devicePixelRatio;
    const bottom = bbox.top + bbox.height - 7 * ratio;
    const dense = u.valToPos(at[0] + 86400, "x", true) - u.valToPos(at[0], "x", true) < 5 * ratio;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left - 6 * ratio, bbox.top, bbox.width + 12 * ratio, bbox.height);
    ctx.clip();
    ctx.lineWidth = 1.6 * ratio;
    for (let place = 0; place < at.length; place++) {
      const [status, f1] = [nights.status[place], nights.test_f1[place]];
      const x = u.valToPos(at[place], "x", true);
      if (TONES[status] === "bad" || status === "cancelled") cross(ctx, x, bottom, 3.2 * ratio);
      else if (f1 !== null && status === "promoted") diamond(ctx, x, u.valToPos(f1, "y", true), 6 * ratio);
      else if (f1 !== null && !dense) ring(ctx, x, u.valToPos(f1, "y", true), 2.6 * ratio);
    }
    // A model that was scored on both sides of a break is a bridge over it.
    ctx.strokeStyle = ctx.fillStyle = colour("--champion");
    for (const place of breaks) {
      const ends = [nights.bridge_before[place], nights.bridge_after[place]];
      if (!place || ends.includes(null)) continue;
      const [from, to] = [Math.max(0, latest(nights.test_f1, place - 1)), place].map((one) => u.valToPos(at[one], "x", true));
      const [before, after] = ends.map((one) => u.valToPos(one, "y", true));
      ctx.setLineDash([]);
      ctx.strokeRect(from - 3 * ratio, before - 3 * ratio, 6 * ratio, 6 * ratio);
      ctx.strokeRect(to - 3 * ratio, after - 3 * ratio, 6 * ratio, 6 * ratio);
      ctx.beginPath();
      ctx.moveTo(from, before);
      ctx.lineTo(to, after);
      ctx.stroke();
    }
    if (lowest < u.scales.y.min) {
      ctx.font = `${12 * ratio}px system-ui, sans-serif`;
      ctx.fillStyle = colour("--threshold");
      ctx.textAlign = "left";
      ctx.textBaseline = "alphabetic";
      ctx.fillText(`↓ min_f1 ${score(lowest)}`, bbox.left + 6 * ratio, bottom - 8 * ratio);
    }
    ctx.restore();
  };
  const lines = [
    { label: "F1 on test", values: nights.test_f1, colour: "--candidate", points: false },
    { label: "champion", values: nights.champion_f1, colour: "--champion", dash: [2, 4], points: false },
    { label: "min_f1", values: nights.min_f1, colour: "--threshold", dash: [8, 5], width: 1.5, points: false, aside: true },
    { label: "low", values: nights.f1_ci_low, ghost: true },
    { label: "high", values: nights.f1_ci_high, ghost: true },
  ];
  if (nights.champion_fresh_f1.some((value) => value !== null)) {
    lines.push({
      label: "champion on rows since its choice",
      ...{ values: nights.champion_fresh_f1, colour: "--training", hidden: true, points: false },
    });
  }
  // A threshold far below would flatten all scores: then words at the edge say where it lies.
  const lowest = Math.min(...nights.min_f1.filter((value) => value !== null));
  const range = (u, low, high) => {
    const [bottom, top] = limits(low, high);
    return lowest < bottom && bottom - lowest < 0.5 * (top - bottom) ? limits(lowest, high) : [bottom, top];
  };
  return chart(host, { label: "F1 of nights", height: 320, ...more, at, names: nights.night, lines, breaks, under, over, range });
}

function cross(ctx, x, y, size) {
  ctx.strokeStyle = colour("--bad");
  ctx.beginPath();
  for (const way of [1, -1]) {
    ctx.moveTo(x - size, y - way * size);
    ctx.lineTo(x + size, y + way * size);
  }
  ctx.stroke();
}

function diamond(ctx, x, y, size) {
  ctx.fillStyle = colour("--candidate");
  ctx.strokeStyle = colour("--ground");
  ctx.beginPath();
  ctx.moveTo(x, y - size);
  ctx.lineTo(x + size, y);
  ctx.lineTo(x, y + size);
  ctx.lineTo(x - size, y);
  ctx.closePath();
  ctx.fill();
  ctx.stroke();
}

function ring(ctx, x, y, size) {
  ctx.fillStyle = colour("--ground");
  ctx.strokeStyle = colour("--candidate");
  ctx.beginPath();
  ctx.arc(x, y, size, 0, 2 * Math.PI);
  ctx.fill();
  ctx.stroke();
}
