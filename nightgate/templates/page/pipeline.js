// The page of one pipeline: its nights, what is chosen of them, and what changed between them.
"use strict";

const nights = frame(data.nights);
const at = nights.night.map(seconds);
const last = nights.length - 1;
const changes = frame(data.changes);
const checks = frame(data.checks);
const champions = frame(data.champions);
const breaks = nights.break_before.flatMap((text, place) => (text ? [place] : []));
const byNight = (rows) => rows.n.reduce((found, n, row) => found.set(n, [...(found.get(n) || []), row]), new Map());
const changesOf = byNight(changes);
const checksOf = byNight(checks);

/** Chosen nights by slot, which gives a night its colour: holes are free. */
const MOST = 6;
const chosen = new Array(MOST).fill(null);
const chosenByDate = () => chosen.filter((place) => place !== null).sort((a, b) => a - b);

// --- the head ---

function head() {
  const now = champions.valid_to.lastIndexOf(null);
  const promoted = nights.status.lastIndexOf("promoted");
  const alarm = latest(nights.alarm);
  const alarmed = alarm >= 0 && alarm >= latest(nights.champion_fresh_f1);
  const n = latest(nights.test_f1);
  const versus = n < 0 ? null : nights.champion_version[n];
  const dated = (detail) => [detail, n < 0 ? "" : el("small", {}, `night ${nights.night[n]}`)];
  const number = nights.status.filter((one) => one === "promoted").length;
  const pill = last < 0 ? "" : mark(nights.status[last]);
  if (pill) pill.classList.add("pill");
  $("status").replaceChildren(pill);
  $("lead").textContent = last < 0 ? "No night yet." : `Night ${nights.night[last]}: ${nights.reason[last] || nights.status[last]}`;
  tiles([
    ["F1 on test", score(nights.test_f1[n]), dated(interval(nights.f1_ci_low[n], nights.f1_ci_high[n]))],
    ["Against the champion", gap(nights.f1_delta[n]), dated(versus === null ? "no champion" : `version ${versus}: ${score(nights.champion_f1[n])}`), nights.f1_delta[n] > 0 ? "good" : "calm"],
    ["Champion", now < 0 ? "none" : `version ${champions.model_version[now]}`, now < 0 ? "" : `since ${champions.valid_from[now].slice(0, 10)}`],
    ["Nights since a promotion", promoted < 0 ? NONE : last - promoted, `${number} of ${nights.length} promoted`],
    ["Alarm", alarmed ? "yes" : "none", alarm < 0 ? "" : `last on ${nights.night[alarm]}`, alarmed ? "bad" : "calm"],
  ]);
}

// --- the timeline, and the panel of the night under the cursor ---

let hovered = null;

function panel(place) {
  if (place === null) return;
  hovered = place;
  const of = (name) => nights[name][place];
  const facts = [
    of("test_f1") !== null && ["F1 on test", `${score(of("test_f1"))} (${interval(of("f1_ci_low"), of("f1_ci_high"))})`],
    of("champion_version") !== null && ["champion", `version ${of("champion_version")}: ${score(of("champion_f1"))}`],
    of("f1_delta") !== null && ["gain", gap(of("f1_delta"))],
    of("rows_total") !== null && ["rows", `${count(of("rows_total"))}, ${count(of("rows_new"))} new`],
    of("training_reason") !== null && ["training", training(place)],
    of("test_rows") !== null && ["test rows", count(of("test_rows"))],
    of("duration_seconds") !== null && ["took", duration(of("duration_seconds"))],
  ].filter(Boolean);
  const changed = (changesOf.get(place) || []).map((row) => `${what(row)}: ${clipped(changes.before[row])} → ${clipped(changes.after[row])}${made(row)}`);
  $("panel").replaceChildren(
    el("h3", {}, of("night"), " ", mark(of("status"))),
    el("dl", {}, facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
    el("p", {}, of("reason") || ""),
    ...[of("later_failure"), of("alarm") && `Alarm: ${of("alarm")}`, of("break_before")].map((text) => text && el("p", { class: "callout warn" }, text)).filter(Boolean),
    changed.length ? el("div", {}, el("h4", {}, "Changed since the night before"), el("ul", {}, changed.map((text) => el("li", {}, text)))) : "",
  );
}

const clipped = (text) => (text === null ? "none" : text.length > 120 ? `${text.slice(0, 117)}…` : text);
const WORDS = { champion_version: "champion", code_version: "code", metric_key: "definition of the score", rows_total: "rows" };
/** What a change is of: settings and libraries by their names, the rest in words. */
const what = (row) => {
  const name = changes.name[row];
  return ["setting", "library"].includes(changes.kind[row]) ? name : WORDS[name] || name.replaceAll("_", " ");
};

/** A new champion is a change of the next night that is judged: when it was made champion, where that was on another day. */
function made(row) {
  const night = nights.night[changes.n[row]];
  const before = (since, place) => since.slice(0, 10) <= night && String(champions.model_version[place]) === changes.after[row];
  const since = changes.kind[row] === "champion" && champions.valid_from.findLast(before);
  return since && !since.startsWith(night) ? ` (made ${moment(since)})` : "";
}

function changeMarks(u) {
  const { ctx, bbox } = u;
  const ratio = devicePixelRatio;
  ctx.save();
  ctx.fillStyle = colour("--muted");
  for (const [place, rows] of changesOf) {
    // A new champion has its own mark.
    if (rows.every((row) => changes.kind[row] === "champion")) continue;
    const x = u.valToPos(at[place], "x", true);
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.beginPath();
    ctx.moveTo(x - 4 * ratio, bbox.top);
    ctx.lineTo(x + 4 * ratio, bbox.top);
    ctx.lineTo(x, bbox.top + 7 * ratio);
    ctx.fill();
  }
  chosen.forEach((place, slot) => {
    if (place === null) return;
    const x = u.valToPos(at[place], "x", true);
    if (x < bbox.left || x > bbox.left + bbox.width) return;
    ctx.strokeStyle = colour(`--s${slot}`);
    ctx.lineWidth = 2 * ratio;
    ctx.setLineDash(dashes(slot).map((one) => one * ratio));
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
  });
  ctx.restore();
}

/** What a screen reader hears of a night. */
const inWords = (place) =>
  `${nights.status[place]}, F1 ${score(nights.test_f1[place])}, ${nights.reason[place] || ""}` +
  (changesOf.has(place) ? `, ${changesOf.get(place).length} changes` : "");

const nightly = (host, options) =>
  chart($(host), { at, names: nights.night, breaks, under: changeMarks, choose: toggle, inWords, ...options });

// --- chosen nights ---

function toggle(place) {
  const slot = chosen.indexOf(place);
  if (slot >= 0) chosen[slot] = null;
  else {
    const free = chosen.indexOf(null);
    chosen[free < 0 ? MOST - 1 : free] = place;
  }
  say(`${nights.night[place]} ${slot >= 0 ? "is no longer chosen" : "is chosen"}`);
  showChosen();
}

function showChosen() {
  $("chips").replaceChildren(
    ...chosen.map((place, slot) =>
      place === null
        ? ""
        : el("button", { type: "button", class: "chip", "aria-label": `Leave out ${nights.night[place]}`, onclick: () => toggle(place) },
            swatch({ colour: `--s${slot}`, dash: dashes(slot) }), nights.night[place], mark(nights.status[place]), el("span", { class: "close" }, "×")),
    ),
  );
  compare();
  epochCurves();
  confusion();
  charts.forEach((one) => one.redraw(false));
}

/** How a night trained where nights go on from the last version. */
const training = (n) => {
  if (nights.training_reason[n] === null) return NONE;
  const version = nights.started_from[n];
  return `${version === null ? "in full" : `continued from version ${version}`}: ${nights.training_reason[n]}`;
};

const FACTS = [
  ["status", (n) => mark(nights.status[n])],
  ["F1 on test", (n) => score(nights.test_f1[n])],
  ["95 % interval", (n) => interval(nights.f1_ci_low[n], nights.f1_ci_high[n]) || NONE],
  ["champion", (n) => (nights.champion_version[n] === null ? NONE : `version ${nights.champion_version[n]}: ${score(nights.champion_f1[n])}`)],
  ["gain", (n) => gap(nights.f1_delta[n])],
  ["reason", (n) => nights.reason[n] || ""],
  ["rows, new", (n) => `${count(nights.rows_total[n])}, ${count(nights.rows_new[n])}`],
  ...(latest(nights.training_reason) < 0 ? [] : [["training", training]]),
  ["rows that decided", (n) => count(nights.test_rows[n])],
  ["best epoch", (n) => count(nights.best_epoch[n])],
  ["duration", (n) => duration(nights.duration_seconds[n])],
  ["checks not passed", (n) => notPassed(n)],
  ["run", (n) => (nights.report[n] ? el("a", { href: nights.report[n] }, nights.run_id[n]) : el("code", {}, nights.run_id[n]))],
];

/** Checks of a night that did not pass, those of slices together. */
function notPassed(n) {
  const found = new Map();
  for (const row of checksOf.get(n) || []) {
    const name = `${checks.check_name[row]} ${checks.outcome[row]}`;
    const slice = checks.slice_value[row] && `${checks.slice_name[row]} ${checks.slice_value[row]}`;
    found.set(name, [...(found.get(name) || []), ...(slice ? [slice] : [])]);
  }
  const some = (of) => (of.length > 4 ? `${of.slice(0, 3).join(", ")} and ${of.length - 3} more` : of.join(", "));
  return el("ul", {}, [...found].map(([name, of]) => el("li", {}, of.length ? `${name}: ${some(of)}` : name)));
}

/** What differs between two nights: the first `before` and the last `after` of each change after the one up to the other. */
function between(first, second) {
  const found = new Map();
  for (let row = 0; row < changes.length; row++) {
    if (changes.n[row] <= first || changes.n[row] > second) continue;
    const key = `${changes.kind[row]} ${changes.name[row]}`;
    const known = found.get(key) || { row, before: changes.before[row], on: [] };
    found.set(key, { ...known, after: changes.after[row], on: [...known.on, nights.night[changes.n[row]] + made(row)] });
  }
  return [...found.values()].filter((one) => one.before !== one.after);
}

function compare() {
  const order = chosenByDate();
  $("compared").replaceChildren(
    order.length
      ? table(["", ...order.map((n) => nights.night[n])], FACTS.map(([name, of]) => [name, ...order.map(of)]), "facts")
      : el("p", { class: "small" }, "No night is chosen: click one in a chart, press Enter on it, or give its date above."),
  );
  if (order.length < 2) return $("changed").replaceChildren();
  const [first, second] = [order[0], order.at(-1)];
  const apart = breaks.filter((place) => place > first && place <= second);
  const rows = between(first, second).map((one) => [
    what(one.row), clipped(one.before), clipped(one.after), one.on.join(", "),
  ]);
  $("changed").replaceChildren(
    el("h3", {}, `What changed between ${nights.night[first]} and ${nights.night[second]}`),
    ...apart.map((place) => el("div", { class: "callout warn" }, `${nights.night[place]}: ${nights.break_before[place]}`)),
    rows.length
      ? table(["what", "before", "after", "on"], rows)
      : el("p", { class: "small" }, "Nothing of settings, training in full or not, code, base model, libraries, test version, labels, device, precision or champion."),
  );
}

// --- epochs ---

const epochs = frame(data.epochs);
const epochsOf = byNight(epochs);
let curves = [];

function epochCurves() {
  curves.forEach((one) => one.gone());
  const shown = chosen.flatMap((place, slot) => (place !== null && epochsOf.has(place) ? [{ place, slot, rows: epochsOf.get(place) }] : []));
  curves = [];
  const most = Math.max(0, ...shown.flatMap(({ rows }) => rows.map((row) => epochs.epoch[row])));
  const numbers = Array.from({ length: most }, (_, before) => before + 1);
  const along = (rows, name) => {
    const values = new Array(most).fill(null);
    rows.forEach((row) => (values[epochs.epoch[row] - 1] = epochs[name][row]));
    return values;
  };
  for (const [host, label, name] of [["validation-loss", "Validation loss", "validation_loss"], ["training-loss", "Training loss", "training_loss"], ["validation-f1", "F1 on validation", "f1"]]) {
    if (!shown.length) {
      $(host).replaceChildren(el("p", { class: "small" }, "Choose nights that were trained."));
      continue;
    }
    const lines = shown.map(({ place, slot, rows }) => ({ label: nights.night[place], values: along(rows, name), colour: `--s${slot}`, dash: dashes(slot) }));
    curves.push(chart($(host), { label, at: numbers, names: numbers, first: "epoch", lines, time: false, height: 200 }));
  }
}

// --- classes and slices ---

let sliceChart = null;

function slices() {
  const names = [...new Set(data.slices.map((one) => one.name))];
  if (!names.length) return $("classes").remove();
  const options = () => names.map((name) => el("option", { value: name }, name === "label" ? "classes" : name));
  $("slice-name").replaceChildren(...options());
  $("slice-name").addEventListener("change", () => sliceLines($("slice-name").value));
  sliceLines(names[0]);
  if (data.slices_left_out) $("left-out").textContent = `The ${data.slices.length} classes and slices with most rows are shown; ${data.slices_left_out} others are left out.`;
  // A new champion is only another opponent: it makes no candidate worse.
  const causes = ({ n, since }) => [...changes.n.keys()]
    .filter((row) => changes.n[row] > since && changes.n[row] <= n && changes.kind[row] !== "champion")
    .map((row) => `${what(row)} on ${nights.night[changes.n[row]]}`);
  const line = (fall) =>
    el("li", {},
      el("button", { type: "button", class: "link", onclick: () => (sliceLines(($("slice-name").value = fall.name)), show(fall.n)) },
        `${fall.name === "label" ? "class" : fall.name} ${fall.value}`),
      ` fell from ${score(fall.before)} to ${score(fall.after)} on ${nights.night[fall.n]}`,
      causes(fall).length ? `; changed: ${causes(fall).join(", ")}` : "",
    );
  const list = el("ul", {});
  const among = el("select", { onchange: () => list.replaceChildren(...fallen()) }, el("option", { value: "" }, "all, up to five"), options());
  const fallen = () => {
    const found = among.value ? data.falls.filter((fall) => fall.name === among.value) : data.falls.slice(0, 5);
    return found.length ? found.map(line) : [el("li", {}, "None fell by more than noise.")];
  };
  list.append(...fallen());
  $("falls").replaceChildren(...(data.falls.length ? [el("div", { class: "bar" }, el("h3", {}, "Largest falls"), el("label", {}, "among ", among)), el("p", { class: "small" }, "Mean F1 of seven scored nights against the seven before, all comparable, and what changed between the first of the fourteen and the fall."), list] : []));
}

/** Choose a night and the one before it, no others, and zoom to them. */
function show(place) {
  chosen.fill(null);
  [latest(nights.test_f1, place - 1), place].forEach((one) => one < 0 || toggle(one));
  zoom([...charts].find((one) => one.time).u, at[Math.max(0, place - 21)], at[Math.min(last, place + 21)]);
}

function sliceLines(name) {
  sliceChart?.gone();
  // The largest are shown, in the order of their names.
  const largest = data.slices.filter((one) => one.name === name).map((one, place) => ({ ...one, hidden: place >= SERIES }));
  largest.sort((a, b) => a.hidden - b.hidden || NATURAL.compare(a.value, b.value));
  const lines = largest.map((one, place) => ({
    label: one.value, values: one.f1, colour: `--s${place % SERIES}`, dash: dashes(place), hidden: one.hidden, points: false, width: 1.8,
  }));
  sliceChart = nightly("slice-chart", { label: `F1 by ${name}`, lines, height: 280 });
}

// --- confusion ---

const cells = frame(data.confusion);
const cellsOf = byNight(cells);

function confusion() {
  const order = chosenByDate().filter((place) => cellsOf.has(place));
  $("matrices").replaceChildren(
    ...(order.length ? order.slice(-2).map(matrix) : [el("p", { class: "small" }, cellsOf.size ? "Choose nights that were scored; matrices are here from " + nights.night[Math.min(...cellsOf.keys())] + " on." : "No night was scored.")]),
  );
}

function matrix(place) {
  const rows = cellsOf.get(place);
  const labels = [...new Set(rows.flatMap((row) => [cells.true_label[row], cells.predicted_label[row]]))].sort(NATURAL.compare);
  const counts = new Map(rows.map((row) => [JSON.stringify([cells.true_label[row], cells.predicted_label[row]]), cells.count[row]]));
  const lines = labels.map((truth) => {
    const all = labels.map((guess) => counts.get(JSON.stringify([truth, guess])) || 0);
    const sum = all.reduce((one, other) => one + other, 0) || 1;
    return el("tr", {}, el("th", { scope: "row" }, truth), all.map((value, guess) => {
      const cell = el("td", { class: labels[guess] === truth ? "right" : null, title: `${truth} predicted as ${labels[guess]}: ${count(value)} of ${count(sum)}` }, count(value));
      cell.style.setProperty("--share", `${Math.round((60 * value) / sum)}%`);
      return cell;
    }), el("td", { class: "sum" }, `${Math.round((100 * (counts.get(JSON.stringify([truth, truth])) || 0)) / sum)} %`));
  });
  return el("figure", {}, el("figcaption", {}, `${nights.night[place]}: true label down, predicted across`),
    el("div", { class: "box" }, el("table", { class: "matrix" },
      el("thead", {}, el("tr", {}, el("td"), labels.map((label) => el("th", { scope: "col" }, label)), el("th", { scope: "col" }, "recall"))),
      el("tbody", {}, lines))));
}

// --- drift, data, cost ---

let driftChart = null;

function drift() {
  const references = [...new Set(data.drift.map((one) => one.reference))];
  if (!references.length) return $("drift").remove();
  const words = { champion: "the champion's training rows", week: "the rows of the week before" };
  $("reference").replaceChildren(...references.map((name) => el("option", { value: name }, words[name] || name.replaceAll("_", " "))));
  const draw = () => {
    driftChart?.gone();
    const lines = data.drift.filter((one) => one.reference === $("reference").value).map((one, place) => ({
      label: `${one.statistic.replaceAll("_", " ")} ${one.slice_name}`.trim(),
      values: one.value.map((value, n) => (value === null || !one.threshold[n] ? null : value / one.threshold[n])),
      colour: `--s${place % SERIES}`, dash: dashes(place), hidden: place >= SERIES, points: false,
    }));
    lines.push({ label: "threshold", values: at.map(() => 1), colour: "--threshold", dash: [8, 5], width: 1.5, points: false });
    driftChart = nightly("drift-chart", { label: "Drift as multiples of the threshold", lines, format: times, floor: 0 });
  };
  $("reference").addEventListener("change", draw);
  draw();
}

function small(host, label, name, format, options = {}) {
  if (nights[name].every((value) => value === null || value === 0)) return $(host).closest("figure").remove();
  const clock = format === duration && { tick: duration, incrs: [1, 5, 10, 30, 60, 300, 600, 1200, 1800, 3600, 7200, 14400, 36000, 86400] };
  nightly(host, { label, lines: [{ label, values: nights[name], colour: "--candidate", points: false, ...options }], format, height: 150, floor: options.bars ? 0 : undefined, ...clock });
}

function dataAndCost() {
  small("rows", "Rows in the snapshot", "rows_total", count);
  small("new-rows", "New rows", "rows_new", count, { bars: true });
  small("quarantined", "Quarantined rows", "rows_quarantined", count, { bars: true, colour: "--champion" });
  const reasons = frame(data.quarantine);
  $("quarantine").replaceChildren(reasons.length ? table(["reason", "open", "resolved", "newest"], reasons.reason.map((reason, row) => [reason.replaceAll("_", " "), count(reasons.open[row]), count(reasons.resolved[row]), reasons.newest[row]])) : "");
  small("duration", "Duration", "duration_seconds", duration, { bars: true });
  small("gpu", "Time on a GPU", "gpu_seconds", duration, { bars: true, colour: "--training" });
  const months = frame(data.months);
  $("months").replaceChildren(table(["month", "nights", "promoted", "hours", "GPU hours", "GPU hours a promotion"], months.month.map((month, row) => {
    const [promoted, gpu] = [months.promoted[row], months.gpu_seconds[row] / 3600];
    return [month, months.nights[row], promoted, (months.duration_seconds[row] / 3600).toFixed(1), gpu.toFixed(1), promoted && gpu ? (gpu / promoted).toFixed(1) : NONE];
  }), "right"));
}

// --- champions, changes, examples ---

function tables() {
  $("champion-table").replaceChildren(champions.length ? table(["version", "since", "until", "F1 then", "by", "reason"], backwards(champions.model_version).map((row) => [
    champions.model_version[row], moment(champions.valid_from[row]), champions.valid_to[row] ? moment(champions.valid_to[row]) : "now", score(champions.test_f1[row]), champions.promoted_by[row], champions.reason[row],
  ])) : el("p", { class: "small" }, "No version was ever champion."));
  $("change-table").replaceChildren(changes.length ? table(["night", "what", "before", "after"], backwards(changes.n).map((row) => [
    nights.night[changes.n[row]], what(row) + made(row), clipped(changes.before[row]), clipped(changes.after[row]),
  ])) : el("p", { class: "small" }, "Nothing changed."));
  $("night-table").replaceChildren(folded("All nights as a table", () => table(["night", "status", "F1", "interval", "champion", "its F1", "gain", "min_f1", "reason"], backwards(at).map((n) => [
    nights.night[n], mark(nights.status[n]), score(nights.test_f1[n]), interval(nights.f1_ci_low[n], nights.f1_ci_high[n]), nights.champion_version[n] ?? "", score(nights.champion_f1[n]), gap(nights.f1_delta[n]), score(nights.min_f1[n]), nights.reason[n],
  ]))));
  if (!data.examples) return $("examples").remove();
  const examples = frame(data.examples);
  $("example-table").replaceChildren(table(["true", "predicted", "text"], examples.text.map((text, row) => [examples.true_label[row], examples.predicted_label[row], text])));
}

// --- all together ---

head();
if (last >= 0) {
  timeline($("timeline"), nights, { numbers: false, under: changeMarks, choose: toggle, inWords, hover: panel, resting: () => hovered ?? last });
  slices();
  drift();
  dataAndCost();
  tables();
  new Set([latest(nights.test_f1), nights.status.lastIndexOf("promoted")]).forEach((place) => place < 0 || toggle(place));
  say("");
  const first = [...charts].find((one) => one.time).u;
  document.querySelectorAll("[data-days]").forEach((button) =>
    button.addEventListener("click", () => zoom(first, Math.max(at[0], at[last] - button.dataset.days * 86400), at[last])),
  );
  $("date").min = nights.night[0];
  $("date").max = nights.night[last];
  $("add").addEventListener("submit", (event) => {
    event.preventDefault();
    const place = nights.night.lastIndexOf($("date").value);
    if (place >= 0) chosen.includes(place) || toggle(place);
    else say(($("no-night").textContent = `There is no night ${$("date").value}.`));
  });
}
document.documentElement.dataset.ready = "yes";
