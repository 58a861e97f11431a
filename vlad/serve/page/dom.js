// Small helpers: what a client or a file wrote becomes text, never markup.

export const $ = id => document.getElementById(id);

export function node(tag, { text, kind, ...rest } = {}, ...children) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  for (const [name, value] of Object.entries(rest)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

export const short = value => value === null || value === undefined ? "" : Number(value).toPrecision(3);

export function save(content, name, type) {
  const address = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  node("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

export function say(sentence) {
  $("notice").textContent = sentence || "";
  $("notice").hidden = !sentence;
}

// Runs what a click started; what goes wrong is said.
export const tried = work => async (...given) => {
  say("");
  try { return await work(...given); } catch (error) { say(error.message); }
};
