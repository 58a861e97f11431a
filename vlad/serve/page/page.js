// What is on the page and what its buttons do.

import * as api from "/page/api.js";
import { $, node, save, say, short, tried } from "/page/dom.js";
import * as picture from "/page/picture.js";
import * as results from "/page/results.js";
import { fill, texts } from "/page/texts.js";

const TOGETHER = 8; // pictures of one request
const PICTURE = /\.(png|jpe?g|webp|bmp|gif|tiff?|pgm|ppm|pbm|heic|avif|jp2)$/i;

let all = [], limits = {}, good = [];
const state = results.state;

// Detectors

async function refresh(name) {
  all = await api.detectors();
  show(all.find(one => one.name === name) || null);
}

function show(detector) {
  const other = detector?.name !== state.detector?.name;
  state.detector = detector;
  if (other) { state.all = []; state.only = ""; }
  state.tried = null;
  const blank = node("option", { value: "", text: texts.none });
  $("detectors").replaceChildren(blank, ...all.map(one => node("option", { value: one.name, text: one.name })));
  $("detectors").value = detector?.name ?? "";
  $("welcome").hidden = Boolean(detector);
  $("work").hidden = !detector;
  if (!detector) return;
  location.hash = detector.name;
  $("title").textContent = detector.words || detector.name;
  $("facts").textContent = texts.facts(detector);
  $("promise").textContent = detector.threshold === null ? texts.sorts : detector.rate ? sentence(detector.note) : texts.byHand;
  for (const id of ["add", "delete", "regions"]) $(id).hidden = limits.read_only;
  results.draw();
}

const sentence = text => text ? `${text[0].toUpperCase()}${text.slice(1)}${text.endsWith(".") ? "" : "."}` : "";

function nameFor(words) {
  const plain = words.toLowerCase().normalize("NFKD").replace(/[^a-z0-9]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 56) || "detector";
  const taken = new Set(all.map(one => one.name));
  for (let number = 1; ; number++) { const name = number === 1 ? plain : `${plain}-${number}`; if (!taken.has(name)) return name; }
}

async function fit(event) {
  event.preventDefault();
  if (!good.length) { say(texts.pictures); return; }
  const words = $("fit-words").value.trim(), name = nameFor(words);
  $("fit-start").disabled = true;
  try {
    await learn(name, good, { words }, "fit-progress", "fit-said");
    take([]);
    $("fit").reset();
    await refresh(name);
    $("said").textContent = texts.learned;
  } finally { $("fit-start").disabled = false; $("fit-progress").hidden = true; $("fit-said").textContent = ""; }
}

// More good pictures than a request may have are learnt in parts.
async function learn(name, files, values, bar, said) {
  $(bar).hidden = false;
  $(bar).removeAttribute("value");
  for (let at = 0; at < files.length; at += limits.max_pictures) {
    const part = files.slice(at, at + limits.max_pictures);
    await api.fit(name, part, at ? { add: "true" } : values, job => {
      $(said).textContent = job.state === "waiting" ? texts.waiting : texts.learning(job.stage, job.done, job.total);
      if (job.total) $(bar).value = job.done / job.total;
    });
  }
}

function take(files) {
  good = pictures(files);
  for (const old of $("fit-thumbs").children) URL.revokeObjectURL(old.src);
  $("fit-thumbs").replaceChildren(...good.slice(0, 24).map(file => node("img", { src: URL.createObjectURL(file), alt: "" })));
  $("fit-count").textContent = !good.length ? texts.fitHint : good.length < 5 ? texts.few(good.length) : texts.chosen(good.length);
}

async function add(files) {
  const name = state.detector.name;
  try {
    await learn(name, pictures(files), { add: "true" }, "progress", "said");
    await refresh(name);
    $("said").textContent = texts.added;
    await again(state.detector);
  } finally { $("progress").hidden = true; }
}

// Pictures

const pictures = files => [...files].filter(file => file.type.startsWith("image/") || PICTURE.test(file.name));

async function look(files) {
  const chosen = pictures(files), from = performance.now();
  if (!chosen.length) { say(texts.noPictures); return; }
  $("progress").hidden = false;
  try {
    for (let at = 0; at < chosen.length; at += TOGETHER) {
      const part = chosen.slice(at, at + TOGETHER);
      const said = await api.score(state.detector.name, part, () => { $("said").textContent = texts.busy; });
      results.put(part, said.results);
      $("progress").value = (at + part.length) / chosen.length;
      $("said").textContent = texts.scoring(at + part.length, chosen.length);
      results.draw();
    }
    $("said").textContent = texts.scored(chosen.length, (performance.now() - from) / 1000);
  } finally { $("progress").hidden = true; }
}

// After a change of the detector, what is on the page is looked at once more.
async function again(detector) {
  all = all.map(one => one.name === detector.name ? detector : one);
  show(detector);
  if (!state.all.length) return;
  $("said").textContent = texts.again;
  await look(state.all.map(one => one.file));
}

async function dropped(event) {
  const entries = [...event.dataTransfer.items].map(item => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...event.dataTransfer.files];
  return (await Promise.all(entries.map(walk))).flat();
}

async function walk(entry) {
  if (entry.isFile) {
    const file = await new Promise((done, failed) => entry.file(done, failed));
    file.place = entry.fullPath.slice(1);
    return [file];
  }
  const reader = entry.createReader(), found = [];
  for (;;) { // a reader gives a hundred at a time
    const some = await new Promise((done, failed) => reader.readEntries(done, failed));
    if (!some.length) break;
    found.push(...some);
  }
  return (await Promise.all(found.map(walk))).flat();
}

function dropZone(zone, use) {
  const over = on => event => { event.preventDefault(); zone.classList.toggle("over", on); };
  zone.addEventListener("dragenter", over(true));
  zone.addEventListener("dragover", over(true));
  zone.addEventListener("dragleave", over(false));
  zone.addEventListener("drop", tried(async event => { over(false)(event); await use(await dropped(event)); }));
}

function chosen(input, use) {
  $(input).addEventListener("change", tried(async event => {
    const files = [...event.target.files];
    event.target.value = "";
    if (files.length) await use(files);
  }));
}

// The camera: live where the browser allows it, else the phone's own.

async function camera() {
  if (!navigator.mediaDevices?.getUserMedia) { $("camera-file").click(); return; }
  try {
    $("video").srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1920 } } });
    $("shoot").showModal();
  } catch { say(texts.noCamera); }
}

async function shutter() {
  const video = $("video"), canvas = node("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise(done => canvas.toBlob(done, "image/jpeg", 0.95));
  const name = `camera-${new Date().toISOString().slice(0, 19).replaceAll(":", "-")}.jpg`;
  $("shoot").close();
  await look([new File([blob], name, { type: "image/jpeg" })]);
}

// All together

async function keep() {
  const made = await api.change(state.detector.name, { threshold: state.tried });
  for (const one of state.all) if (one.line.error === null) Object.assign(one.line, { threshold: made.threshold, verdict: results.verdict(one) });
  all = all.map(one => one.name === made.name ? made : one);
  show(made);
  $("said").textContent = texts.kept(short(made.threshold));
}

async function remove() {
  const name = state.detector.name;
  if (!confirm(texts.reallyDelete(name))) return;
  await api.remove(name);
  await refresh(null);
  say(texts.deleted(name));
}

async function begin() {
  fill();
  $("fit-words").placeholder = $("words-words").placeholder = texts.whatExample;
  $("counts").setAttribute("aria-label", texts.threshold);
  results.connect();
  picture.connect(again);
  $("detectors").addEventListener("change", event => show(all.find(one => one.name === event.target.value) || null));
  $("new").addEventListener("click", () => { show(null); $("fit-words").focus(); });
  $("fit").addEventListener("submit", tried(fit));
  $("words").addEventListener("submit", tried(async event => {
    event.preventDefault();
    const words = $("words-words").value.trim();
    await refresh((await api.describe(nameFor(words), words)).name);
  }));
  chosen("open-file", async ([file]) => refresh((await api.upload(nameFor(file.name.replace(/\.safetensors$/, "")), file)).name));
  chosen("fit-files", take);
  chosen("add-files", add);
  for (const id of ["files", "folder", "camera-file"]) chosen(id, look);
  dropZone($("fit-drop"), take);
  dropZone($("drop"), look);
  $("camera").addEventListener("click", camera);
  $("shutter").addEventListener("click", tried(shutter));
  $("shoot").addEventListener("close", () => { for (const track of $("video").srcObject?.getTracks() || []) track.stop(); });
  $("keep").addEventListener("click", tried(keep));
  $("delete").addEventListener("click", tried(remove));
  $("file").addEventListener("click", tried(async event => { event.preventDefault(); save(await api.file(state.detector.name), `${state.detector.name}.safetensors`); }));
  for (const button of document.querySelectorAll("[data-close]")) button.addEventListener("click", () => button.closest("dialog").close());
  try {
    limits = await api.server();
    await refresh(decodeURIComponent(location.hash.slice(1)));
    if (!state.detector && all.length) show(all[0]);
    $("new").hidden = limits.read_only;
    $("state").textContent = texts.ready;
  } catch (error) { $("state").textContent = texts.away; say(error.message); }
}

begin();
