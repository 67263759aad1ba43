/* The miner's HTTP API, as docs/http.md describes it. */

const KEY = "splat-miner.key";

/** What went wrong with a call. `status` is 0 where there was no answer. */
export class ApiError extends Error {
  constructor(status, message, body = {}, retryAfter = null) {
    super(message);
    this.status = status;
    this.reasonCode = body.reason_code ?? null;
    this.retryAfter = retryAfter;
  }
}

/** Keeps the API key of this tab; an empty one is none. */
export function setKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

async function call(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = key ? { "X-API-Key": latin1(key) } : {};
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "the miner does not answer");
  }
  if (answer.ok) return answer;
  let body = {};
  try {
    body = await answer.json();
  } catch { /* A proxy's own page. */ }
  const seconds = Number.parseInt(answer.headers.get("Retry-After") ?? "", 10);
  const message = body.message ?? `the answer was HTTP ${answer.status}`;
  throw new ApiError(answer.status, message, body, Number.isNaN(seconds) ? null : seconds);
}

/** Headers hold bytes: a key beyond ASCII travels as UTF-8. */
function latin1(text) {
  return String.fromCharCode(...new TextEncoder().encode(text));
}

export async function status() {
  return (await call("/status")).json();
}

/** Starts a job from `prompt` or `picture` (a File); `seed` and `candidates` may be null. */
export async function start({ prompt, picture, seed, candidates }) {
  const body = new FormData();
  if (picture) body.append("prompt_image_file", picture);
  else body.append("prompt", prompt);
  if (seed !== null) body.append("seed", String(seed));
  if (candidates !== null) body.append("candidates", String(candidates));
  return (await call("/jobs", { method: "POST", body })).json();
}

export async function job(id) {
  return (await call(`/jobs/${encodeURIComponent(id)}`)).json();
}

export async function cancel(id) {
  await call(`/jobs/${encodeURIComponent(id)}`, { method: "DELETE" });
}

export async function file(url) {
  return (await call(url)).blob();
}

/** Calls `onJob` with the job at every change; ends when the server closes the stream. */
export async function follow(id, onJob) {
  const answer = await call(`/jobs/${encodeURIComponent(id)}/events`);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (text + value).replaceAll("\r\n", "\n").split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data:"));
      if (data.length) onJob(JSON.parse(data.map((line) => line.slice(5)).join("\n")));
    }
  }
}
