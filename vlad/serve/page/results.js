// What was scored in this tab: cards worst first, the slider, downloads.

import { $, node, save, short } from "/page/dom.js";
import { texts } from "/page/texts.js";

const STEP = 120;
const ORDER = ["anomalous", "unsure", "normal", "uncalibrated", "failed"];
const COLUMNS = ["source", "verdict", "score", "threshold", "p_value", "regions", "x0", "y0", "x1", "y1", "area", "error"];

const STYLE = "body{font:16px system-ui;margin:2rem;color-scheme:light dark}main{display:grid;grid-template-columns:repeat(auto-fill,minmax(220px,1fr));gap:1rem}figure{margin:0;overflow-wrap:anywhere}img{width:100%}.anomalous{color:#d92d20}.normal{color:#128a3e}.unsure{color:#b26a00}";

export const state = { detector: null, all: [], tried: null, only: "", limit: STEP, open: () => {} };

const verdictAt = (line, threshold) => line.error !== null ? "failed" : threshold === null ? line.verdict : line.score >= threshold ? "anomalous" : "normal";
export const verdict = one => verdictAt(one.line, state.tried);
const threshold = () => state.tried ?? state.detector?.threshold ?? null;
const top = () => Math.max(...state.all.map(one => one.line.score ?? 0), ...state.detector.normal_scores, state.detector.threshold ?? 0, 1e-6) * 1.05;
const rank = one => one.line.score ?? Infinity;

export const listed = () => state.all.filter(one => !state.only || verdict(one) === state.only).sort((a, b) => rank(b) - rank(a));

export function put(files, lines) {
  files.forEach((file, at) => {
    const made = { file, line: lines[at] }, before = state.all.findIndex(one => one.file === file);
    if (before < 0) state.all.push(made); else state.all[before] = made;
  });
}

export function draw() {
  $("results").hidden = !state.all.length;
  if (!state.all.length) return;
  const list = listed();
  $("grid").replaceChildren(...list.slice(0, state.limit).map(card));
  $("more").hidden = list.length <= state.limit;
  $("more").textContent = texts.more(Math.min(STEP, list.length - state.limit));
  drawCounts();
  drawSlider();
}

function card(one) {
  const word = verdict(one), line = one.line;
  const photo = line.overlay ? node("img", { src: line.overlay, alt: "", loading: "lazy" }) : node("span", { kind: "none", text: line.error === null ? "" : "✕" });
  const words = node("span", { kind: "words" },
    node("span", { kind: "row" }, badge(word), node("span", { kind: "number", text: short(line.score) })),
    node("span", { kind: "name", text: line.source }),
    line.error === null ? "" : node("span", { kind: "why", text: line.error }),
    ...(line.notes || []).map(text => node("span", { kind: "why", text })));
  return node("li", {}, node("button", { kind: `card ${word}`, onclick: () => state.open(one) }, photo, words));
}

export const badge = word => node("span", { kind: `badge ${word}`, text: texts.verdicts[word] });

function drawCounts() {
  const counts = {};
  for (const one of state.all) counts[verdict(one)] = (counts[verdict(one)] || 0) + 1;
  const button = (word, count) => node("button", {
    kind: `count ${word}`, "aria-pressed": String(state.only === word), "data-verdict": word,
    onclick: () => { state.only = word; state.limit = STEP; draw(); },
  }, node("b", { text: count }), ` ${word ? texts.verdicts[word] : texts.all}`);
  $("counts").replaceChildren(button("", state.all.length), ...ORDER.filter(word => counts[word]).map(word => button(word, counts[word])));
}

function drawSlider() {
  const now = threshold(), high = top(), kept = state.tried === null;
  $("slider").value = now === null ? 1000 : Math.round(1000 * now / high);
  $("shown").textContent = now === null ? texts.noThreshold : short(now);
  $("slider").setAttribute("aria-valuetext", $("shown").textContent);
  const mark = (score, kind) => { const made = node("i", { kind }); made.style.left = `${100 * score / high}%`; return made; };
  $("marks").replaceChildren(
    ...state.detector.normal_scores.map(score => mark(score, "good")),
    ...state.all.filter(one => one.line.error === null).map(one => mark(one.line.score, verdict(one))));
  $("keep").hidden = $("reset").hidden = kept;
  $("means").textContent = now === null ? texts.sorts : `${counted()} ${promise(now, kept)}`;
}

function counted() {
  const of = word => state.all.filter(one => verdict(one) === word).length;
  return texts.means(of("anomalous"), of("normal"), of("unsure"));
}

function promise(now, kept) {
  const known = state.detector.normal_scores;
  if (kept && state.detector.rate) return texts.promiseRate(state.detector.rate);
  return known.length ? texts.promiseTried(known.filter(score => score >= now).length, known.length) : texts.promiseNone;
}

export function slide() {
  state.tried = top() * $("slider").value / 1000;
  const list = listed();
  $("grid").replaceChildren(...list.slice(0, state.limit).map(card));
  drawCounts();
  drawSlider();
}

// Lines as they would stand in results.jsonl, with the verdicts that are shown.
const shownLines = () => listed().map(one => {
  const { overlay, ...line } = one.line;
  const said = verdict(one);
  return line.error !== null ? line : { ...line, threshold: threshold(), verdict: said, is_anomalous: { anomalous: true, normal: false }[said] ?? null };
});

const cell = value => {
  const text = value === null || value === undefined ? "" : typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};

function table() {
  const largest = line => line.regions.reduce((a, b) => (a && a.area >= b.area ? a : b), null);
  const row = line => {
    const region = largest(line), [x0, y0, x1, y1] = region ? region.box : [];
    return COLUMNS.map(name => cell({ ...line, regions: line.regions.length, x0, y0, x1, y1, area: region?.area }[name])).join(",");
  };
  return [COLUMNS.join(","), ...shownLines().map(row)].join("\r\n") + "\r\n";
}

// One file that shows the results anywhere, without script.
function standalone() {
  const made = document.implementation.createHTMLDocument(texts.title(state.detector.name, state.all.length));
  const facts = { ...state.detector, threshold: short(threshold()) || null };
  made.body.append(node("h1", { text: made.title }), node("p", { text: texts.made(new Date().toLocaleString(), facts) }));
  made.body.append(node("main", {}, ...listed().map(one => node("figure", {},
    one.line.overlay ? node("img", { src: one.line.overlay, alt: "" }) : "",
    node("figcaption", {}, node("b", { kind: verdict(one), text: texts.verdicts[verdict(one)] }), ` ${short(one.line.score)} ${one.line.source} ${one.line.error || ""}`)))));
  return `<!doctype html>\n${made.documentElement.outerHTML.replace("<head>", `<head><meta charset="utf-8"><style>${STYLE}</style>`)}`;
}

export function connect() {
  const name = () => state.detector.name;
  $("slider").addEventListener("input", slide);
  $("reset").addEventListener("click", () => { state.tried = null; draw(); });
  $("more").addEventListener("click", () => { state.limit += STEP; draw(); });
  $("clear").addEventListener("click", () => { state.all = []; state.only = ""; state.tried = null; draw(); });
  $("csv").addEventListener("click", () => save(table(), `${name()}.csv`, "text/csv;charset=utf-8"));
  $("lines").addEventListener("click", () => save(shownLines().map(line => JSON.stringify(line) + "\n").join(""), `${name()}.jsonl`, "application/x-ndjson"));
  $("page").addEventListener("click", () => save(standalone(), `${name()}.html`, "text/html"));
}
