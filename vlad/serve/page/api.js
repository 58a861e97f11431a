// The server as functions; every error is an Error with its sentence.

let key = sessionStorage.getItem("vlad-key");
let asking = null;

export async function request(path, options = {}, patient = null) {
  const headers = { ...(options.headers || {}), ...(key ? { authorization: `Bearer ${key}` } : {}) };
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) { await askKey(); return request(path, options, patient); }
  if (answer.status === 503 && patient) {
    patient();
    await new Promise(done => setTimeout(done, 1000 * (Number(answer.headers.get("retry-after")) || 1)));
    return request(path, options, patient);
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  throw new Error(said.error || `${answer.status} ${answer.statusText}`);
}

// Several requests that meet a closed door share one question.
function askKey() {
  asking ||= new Promise(done => {
    const dialog = document.getElementById("ask");
    dialog.addEventListener("close", () => {
      key = document.getElementById("key").value.trim();
      sessionStorage.setItem("vlad-key", key);
      asking = null;
      done();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

const json = async (path, options, patient) => (await request(path, options, patient)).json();
const sent = body => ({ method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
const at = name => `/v1/detectors/${encodeURIComponent(name)}`;

function form(values, files, field = "files") {
  const made = new FormData();
  for (const [name, value] of Object.entries(values)) if (value !== undefined) made.append(name, value);
  for (const file of files) made.append(field, file, file.place || file.webkitRelativePath || file.name);
  return { method: "POST", body: made };
}

export const server = () => json("/v1/server");
export const detectors = () => json("/v1/detectors");
export const describe = (name, words) => json(at(name), sent({ words }));
export const upload = (name, file) => json(at(name), { method: "PUT", body: file, headers: { "content-type": "application/octet-stream" } });
export const change = (name, what) => json(at(name), { ...sent(what), method: "PATCH" });
export const remove = name => request(at(name), { method: "DELETE" });
export const file = async name => (await request(`${at(name)}/file`)).blob();
export const score = (detector, files, patient) => json("/v1/score", form({ detector, maps: "jpeg" }, files), patient);
export const explain = async (detector, file) => finished(await json("/v1/explain?wait=20", form({ detector }, [file], "file")));

// `told(job)` hears how far it is.
export async function fit(name, files, values, told) {
  return finished(await json(`${at(name)}/fit?wait=0`, form(values, files)), told);
}

async function finished(job, told = () => {}) {
  while (job.state) {
    told(job);
    if (job.state === "done") return job.result;
    if (job.state === "failed") throw new Error(job.error);
    await new Promise(done => setTimeout(done, 250));
    job = await json(`/v1/jobs/${job.id}`);
  }
  return job;
}
