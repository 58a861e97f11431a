// One picture large: what was found, words for it, and boxes of what does not count.

import * as api from "/page/api.js";
import { $, node, short, tried } from "/page/dom.js";
import { badge, listed, state, verdict } from "/page/results.js";
import { texts } from "/page/texts.js";

const SMALLEST = 0.01; // of a side; less is a click

let one = null, drawing = false, start = null, boxes = [], again = () => {}, plain = null;

export function connect(rescore) {
  again = rescore;
  state.open = open;
  $("picture").addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) { const list = listed(), next = list[list.indexOf(one) + step]; if (next) open(next); }
  });
  $("swap").addEventListener("click", swap);
  $("large").addEventListener("load", event => $("stage").style.setProperty("--ratio", event.target.naturalWidth / event.target.naturalHeight));
  $("explain").addEventListener("click", tried(explain));
  $("draw").addEventListener("click", () => arm(!drawing));
  $("save-regions").addEventListener("click", tried(keep));
  $("stage").addEventListener("pointerdown", begin);
  $("stage").addEventListener("pointermove", move);
  $("stage").addEventListener("pointerup", end);
}

function open(which) {
  one = which;
  boxes = [...(state.detector.ignore || [])];
  const line = one.line;
  forget();
  $("large").src = line.overlay || original();
  $("large").alt = line.source;
  $("swap").setAttribute("aria-pressed", "false");
  $("swap").disabled = !line.overlay;
  $("picture-name").textContent = line.source;
  $("picture-verdict").replaceChildren(badge(verdict(one)), ` ${line.error ?? texts.score(short(line.score))}`);
  $("found").replaceChildren(...(line.regions.length ? line.regions.slice(0, 8).map(region => node("li", { text: texts.region(region) })) : [node("li", { kind: "soft", text: line.error === null ? texts.noRegion : "" })]));
  $("explanation").replaceChildren();
  $("explain").disabled = line.error !== null;
  $("save-regions").hidden = true;
  arm(false);
  drawBoxes();
  if (!$("picture").open) $("picture").showModal();
}

const original = () => (plain ||= URL.createObjectURL(one.file));
function forget() { if (plain) URL.revokeObjectURL(plain); plain = null; }

function swap() {
  const on = $("swap").getAttribute("aria-pressed") !== "true";
  $("swap").setAttribute("aria-pressed", String(on));
  $("large").src = on ? original() : one.line.overlay;
}

async function explain() {
  const asked = one;
  $("explanation").replaceChildren(node("p", { kind: "soft", text: `${texts.explaining} …` }));
  try {
    const said = (await api.explain(state.detector.name, asked.file)).explanation;
    if (one !== asked) return;
    const defects = said.defects.map(defect => node("li", {}, node("b", { text: defect.type }), ` ${defect.description}`));
    $("explanation").replaceChildren(
      node("ul", { kind: "found" }, ...defects),
      said.needs_review ? node("p", { text: texts.review }) : "",
      ...said.limits.map(limit => node("p", { kind: "soft small", text: limit.text })));
  } catch (error) { $("explanation").replaceChildren(); throw error; }
}

// Boxes, as shares of width and height

function arm(on) {
  drawing = on;
  $("draw").setAttribute("aria-pressed", String(on));
  $("stage").classList.toggle("drawing", on);
}

function place(event) {
  const frame = $("large").getBoundingClientRect(), within = value => Math.min(1, Math.max(0, value));
  return [within((event.clientX - frame.left) / frame.width), within((event.clientY - frame.top) / frame.height)];
}

const between = (a, b) => [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])].map(value => Math.round(value * 1e4) / 1e4);

function begin(event) {
  if (!drawing) return;
  event.preventDefault();
  start = place(event);
  $("stage").setPointerCapture(event.pointerId);
}

function move(event) {
  if (start) drawBoxes(between(start, place(event)));
}

function end(event) {
  if (!start) return;
  const box = between(start, place(event));
  start = null;
  if (box[2] - box[0] > SMALLEST && box[3] - box[1] > SMALLEST) { boxes.push(box); changed(); } else drawBoxes();
}

function changed() {
  $("save-regions").hidden = false;
  drawBoxes();
}

function drawBoxes(growing) {
  const frame = (box, kind) => {
    const made = node("i", { kind });
    Object.assign(made.style, { left: `${100 * box[0]}%`, top: `${100 * box[1]}%`, width: `${100 * (box[2] - box[0])}%`, height: `${100 * (box[3] - box[1])}%` });
    return made;
  };
  $("boxes").replaceChildren(...boxes.map(box => frame(box, "box")), ...(growing ? [frame(growing, "box growing")] : []));
  const remove = at => () => { boxes.splice(at, 1); changed(); };
  $("ignored").replaceChildren(
    ...(state.detector.masked && !boxes.length ? [node("li", { kind: "soft", text: texts.masked })] : []),
    ...boxes.map((box, at) => node("li", {}, `${texts.ignoredBox(box)} `, node("button", { kind: "quiet small", text: texts.remove, onclick: remove(at) }))));
}

async function keep() {
  const made = await api.change(state.detector.name, { ignore: boxes });
  $("picture").close();
  await again(made);
}
