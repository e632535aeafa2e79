// Files in pieces: declared with their digests, sent at an offset, taken up again after a cut.
import { digest } from "./sha256.js";

const form = document.querySelector("form[data-upload]");
const KNOWN = ["adapter_model.safetensors", "adapter_config.json", "task_card.json", "vector.safetensors"];
const headers = { "X-CSRF-Token": document.body.dataset.csrf };
const picked = new Map();
const part = (selector) => form.querySelector(selector);
const go = part("button.go"), drop = part("[data-drop]"), list = part("[data-picked]"), problem = part("[data-problem]");
const sending = part("[data-sending]"), status = part("[data-status]"), bar = part("progress");
let stop = null;

function size(n) { return n >= 1e6 ? `${(n / 1e6).toFixed(1)} MB` : n >= 1e3 ? `${Math.round(n / 1e3)} kB` : `${n} B`; }

function take(files) {
  problem.hidden = true;
  const ignored = [];
  for (const file of files) KNOWN.includes(file.name) ? picked.set(file.name, file) : ignored.push(file.name);
  const sets = [["adapter_model.safetensors", "adapter_config.json"], ["vector.safetensors"]];
  const names = [...picked.keys()].filter((n) => n !== "task_card.json");
  const whole = sets.some((s) => s.length === names.length && s.every((n) => picked.has(n)));
  const missing = names.length && !picked.has("vector.safetensors") ? sets[0].filter((n) => !picked.has(n)) : [];
  const lines = [...picked.values()].map((f) => `${f.name}, ${size(f.size)}`);
  if (missing.length) lines.push(`still needed: ${missing.join(", ")}`);
  else if (names.length && !whole) lines.push("give an adapter's two files, or one vector.safetensors; not both");
  if (ignored.length) lines.push(`left out: ${ignored.slice(0, 5).join(", ")}${ignored.length > 5 ? " …" : ""}`);
  list.replaceChildren(...lines.map((text) => Object.assign(document.createElement("li"), { textContent: text, dir: "auto" })));
  go.disabled = !whole;
}

async function entries(item) { // a dropped folder's files, one level deep
  const entry = item.webkitGetAsEntry?.();
  if (!entry?.isDirectory) { const file = item.getAsFile(); return file ? [file] : []; }
  const inside = await new Promise((done, fail) => entry.createReader().readEntries(done, fail));
  return Promise.all(inside.filter((e) => e.isFile).map((e) => new Promise((done, fail) => e.file(done, fail))));
}

part("input[type=file]").addEventListener("change", (event) => take(event.target.files));
for (const kind of ["dragenter", "dragover"]) drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over-it"); });
for (const kind of ["dragleave", "drop"]) drop.addEventListener(kind, () => drop.classList.remove("over-it"));
drop.addEventListener("drop", async (event) => {
  event.preventDefault();
  const items = [...event.dataTransfer.items].filter((i) => i.kind === "file");
  take((await Promise.all(items.map(entries))).flat());
});

class Refused extends Error {
  constructor(error, status) { super(error.why); this.error = error; this.status = status; }
}

async function call(address, options = {}) {
  const answer = await fetch(address, { ...options, headers: { ...headers, ...options.headers }, signal: stop.signal });
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => null);
  throw new Refused(body?.error ?? { given: "The request", why: `the service answered ${answer.status}`, remedy: "Try again later." }, answer.status);
}

const json = (body) => ({ method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });

async function send(upload, file, progress) {
  const address = `/api/v1/uploads/${encodeURIComponent(upload)}/parts/${encodeURIComponent(file.name)}`;
  const chunk = Math.min(Number(form.dataset.chunk), 4 * 2 ** 20);
  let at = 0;
  for (let failures = 0; at < file.size;) {
    try {
      const body = file.slice(at, at + chunk);
      await call(address, { method: "PATCH", body, headers: { "Content-Type": "application/octet-stream", "Upload-Offset": String(at) } });
      at += body.size;
      failures = 0;
      progress(at);
    } catch (error) {
      const again = !(error instanceof Refused) || [408, 409, 429, 503].includes(error.status);
      if (stop.signal.aborted || !again || ++failures > 6) throw error;
      status.textContent = "Cut off; taking it up again …";
      await new Promise((wake) => setTimeout(wake, 500 * 2 ** failures));
      const head = await call(address, { method: "HEAD" }).catch(() => null);
      if (head) at = Number(head.headers.get("Upload-Offset"));
    }
  }
}

function show(error) {
  const { given, why, remedy } = error instanceof Refused ? error.error : { given: "The upload", why: "the connection failed", remedy: "try again" };
  const line = (text) => Object.assign(document.createElement("p"), { textContent: text });
  problem.replaceChildren(line(`${given}: ${why}.`), line(`${remedy}.`));
  problem.hidden = false;
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  stop = new AbortController();
  go.disabled = true;
  sending.hidden = false;
  problem.hidden = true;
  const files = [...picked.values()], total = files.reduce((sum, f) => sum + f.size, 0);
  let upload = null;
  try {
    if (files.some((f) => f.size > Number(form.dataset.most))) throw new Refused({ given: "A file", why: `it has more than ${size(Number(form.dataset.most))}`, remedy: "Use the command line on your own machine" }, 413);
    const parts = [];
    let before = 0;
    status.textContent = "Computing digests …";
    for (const file of files) {
      parts.push({ name: file.name, size: file.size, sha256: await digest(file, (n) => { bar.value = (0.2 * (before + n)) / total; }) });
      before += file.size;
    }
    const given = Object.fromEntries([...new FormData(form)].filter(([, value]) => typeof value === "string" && value.trim()));
    upload = (await (await call("/api/v1/uploads", json({ purpose: form.dataset.upload, parts, ...given }))).json()).upload.id;
    before = 0;
    for (const file of files) {
      await send(upload, file, (n) => {
        bar.value = 0.2 + (0.8 * (before + n)) / total;
        status.textContent = `${size(before + n)} of ${size(total)} sent`;
      });
      before += file.size;
    }
    status.textContent = "All is there; checking …";
    const done = await (await call(`/api/v1/uploads/${encodeURIComponent(upload)}/complete`, { method: "POST" })).json();
    location.assign(`/jobs/${encodeURIComponent(done.job.id)}`);
  } catch (error) {
    if (stop.signal.aborted) {
      if (upload) fetch(`/api/v1/uploads/${encodeURIComponent(upload)}`, { method: "DELETE", headers });
    } else show(error);
    sending.hidden = true;
    go.disabled = false;
  }
});

part("[data-cancel]").addEventListener("click", () => stop?.abort());
