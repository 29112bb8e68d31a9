// The page of all pipelines: a row each, those that need somebody first; a row opens its timeline.
"use strict";

const all = data.pipelines.map((one) => ({ ...one, frame: frame(one.nights) }));
const SPARK = 90;

/** The F1 of the last nights as a small line, broken where scores are not comparable, with the champion's changes. */
function sparkline(nights) {
  const ns = "http://www.w3.org/2000/svg";
  const from = Math.max(0, nights.length - SPARK);
  const values = nights.test_f1.slice(from);
  const known = values.filter((value) => value !== null);
  const drawn = document.createElementNS(ns, "svg");
  drawn.setAttribute("viewBox", "0 0 180 36");
  drawn.setAttribute("class", "spark");
  drawn.setAttribute("role", "img");
  drawn.setAttribute("aria-label", known.length ? `F1 of ${values.length} nights: from ${score(known[0])} to ${score(known.at(-1))}` : "no scores");
  if (!known.length) return drawn;
  const [low, high] = limits(Math.min(...known), Math.max(...known));
  const x = (place) => 4 + (172 * place) / Math.max(1, values.length - 1);
  const y = (value) => 33 - (30 * (value - low)) / (high - low);
  let line = "";
  let pen = false;
  values.forEach((value, place) => {
    if (value === null) return;
    line += `${pen && !nights.break_before[from + place] ? "L" : "M"}${x(place).toFixed(1)} ${y(value).toFixed(1)}`;
    pen = true;
  });
  const add = (name, attributes) => {
    const part = document.createElementNS(ns, name);
    Object.entries(attributes).forEach(([key, value]) => part.setAttribute(key, value));
    drawn.append(part);
  };
  add("path", { d: line, class: "f1" });
  values.forEach((value, place) => {
    const status = nights.status[from + place];
    if (status === "promoted" && value !== null) add("circle", { cx: x(place), cy: y(value), r: 2.6, class: "promoted" });
    else if (TONES[status] === "bad") add("path", { d: `M${x(place) - 2.5} 31l5 5m0-5l-5 5`, class: "failed" });
  });
  const end = values.findLastIndex((value) => value !== null);
  add("circle", { cx: x(end), cy: y(values[end]), r: 3.4, class: "end" });
  return drawn;
}

/** The first score of the last 30 nights that is comparable with the newest one, and what has been gained since. */
function change(nights, n) {
  const from = Math.max(0, nights.length - 30, latest(nights.break_before));
  const first = nights.test_f1.findIndex((value, place) => place >= from && value !== null);
  return { first, gain: first < 0 || first === n ? null : nights.test_f1[n] - nights.test_f1[first] };
}

function row(one) {
  const nights = one.frame;
  const n = latest(nights.test_f1);
  const { first, gain } = change(nights, n);
  const open = el("button", { type: "button", class: "link name", "aria-expanded": "false" }, one.pipeline);
  const shown = [
    el("td", { class: "need" }, one.needs ? mark("needs you", "bad") : mark("fine", "good")),
    el("td", {}, open, one.needs ? el("p", { class: "needs" }, one.needs, one.remedy ? el("code", {}, one.remedy) : "") : ""),
    el("td", {}, sparkline(nights)),
    el("td", { "data-name": "last night" }, one.night || NONE, " ", one.status ? mark(one.status) : ""),
    el("td", { "data-name": "F1" }, el("b", {}, score(nights.test_f1[n])), el("small", {}, interval(nights.f1_ci_low[n], nights.f1_ci_high[n])), n < 0 ? "" : el("small", {}, `night ${nights.night[n]}`), el("small", { class: "fall" }, gain === null ? NONE : `${gap(gain)} since ${nights.night[first]}`)),
    el("td", { "data-name": "champion" }, one.champion_version === null ? "none" : `version ${one.champion_version}`, el("small", {}, one.champion_since ? `since ${one.champion_since.slice(0, 10)}` : "")),
  ];
  const line = el("tr", { class: one.needs ? "wanted" : null }, shown);
  let below = null;
  open.addEventListener("click", () => {
    const opened = open.getAttribute("aria-expanded") === "true";
    open.setAttribute("aria-expanded", String(!opened));
    if (below) return (below.hidden = opened);
    const host = el("div", {});
    const panel = el("p", { class: "small", "aria-live": "off" });
    below = el("tr", { class: "below" }, el("td", { colspan: 6 }, host, panel, one.page ? el("a", { href: one.page }, `the page of ${one.pipeline}`) : el("p", { class: "small" }, "Its own page: ", el("code", {}, `nightgate report ${one.pipeline}`))));
    line.after(below);
    if (!nights.length) return;
    const tell = (place) => place !== null && panel.replaceChildren(el("b", {}, nights.night[place]), " ", mark(nights.status[place]), ` F1 ${score(nights.test_f1[place])}. ${nights.reason[place] || ""} ${nights.break_before[place] || ""}`);
    timeline(host, nights, { height: 220, hover: tell, resting: () => nights.length - 1, inWords: (place) => `${nights.status[place]}, F1 ${score(nights.test_f1[place])}` });
  });
  return { one, line, gain, below: () => below };
}

const rows = all.map(row);
const ORDERS = {
  need: () => 0,
  name: (a, b) => NATURAL.compare(a.one.pipeline, b.one.pipeline),
  fall: (a, b) => a.gain - b.gain,
  champion: (a, b) => (a.one.champion_since || "").localeCompare(b.one.champion_since || ""),
};

function arrange() {
  const wanted = $("filter").value.trim().toLowerCase();
  const order = ORDERS[$("order").value];
  $("rows").closest("table").dataset.order = $("order").value;
  const shown = rows.filter(({ one }) => `${one.pipeline} ${one.status} ${one.needs}`.toLowerCase().includes(wanted));
  $("rows").replaceChildren(...[...shown].sort(order).flatMap(({ line, below }) => (below() ? [line, below()] : [line])));
  say(`${shown.length} of ${rows.length} pipelines`);
}

const statuses = all.map((one) => one.status);
const number = (status) => statuses.filter((one) => one === status).length;
tiles([
  ["Need somebody", all.filter((one) => one.needs).length, `of ${all.length} pipelines`],
  ["Promoted", number("promoted"), "newest night"],
  ["Held", number("held"), "newest night"],
  ["Failed or missed", number("failed") + number("missed"), "newest night"],
  ["Without a champion", all.filter((one) => one.champion_version === null).length, "held or failed so far"],
]);
$("filter").addEventListener("input", arrange);
$("order").addEventListener("change", arrange);
arrange();
document.documentElement.dataset.ready = "yes";
