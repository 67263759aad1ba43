/* The chosen entry: its state, stages, pictures, figures and files. */

import { overlay } from "./scene.js";
import {
  advice, count, fileStem, improvement, isOver, levelLine, longState, score, seconds, size, stageName,
} from "./words.js";

const element = (id) => document.getElementById(id);
const MADE_ON_REQUEST = ["glb", "obj"];
const SHOWN_AS_PICTURES = ["picture", "cutout"];

export class Details {
  #entries;
  #scene;
  #entry = null;
  #urls = [];
  #levels = [];

  constructor(entries, scene) {
    this.#entries = entries;
    this.#scene = scene;
    setInterval(() => {
      if (this.#entry && !isOver(this.#entry.job)) this.#showState();
    }, 100);
  }

  /** Takes the quality levels that the miner has now. */
  know(levels) {
    this.#levels = levels;
    if (this.#entry) showFacts(this.#entry.job, levels);
  }

  /** Shows another entry, or none. */
  choose(entry) {
    const other = entry?.id !== this.#entry?.id;
    this.#entry = entry;
    element("details").hidden = entry === null;
    if (!other) return;
    this.#scene.clear();
    for (const url of this.#urls.splice(0)) URL.revokeObjectURL(url);
    for (const id of ["picture", "cutout"]) element(`${id}-shown`).hidden = true;
    element("pictures").hidden = true;
    element("download-problem").hidden = true;
    element("stages").replaceChildren();
    element("downloads").replaceChildren();
    if (entry) this.update();
    else overlay("Your object appears here.");
  }

  /** Shows what has changed in the chosen entry. */
  update() {
    const { job, title, forgotten } = this.#entry;
    element("title").textContent = title;
    element("cancel").hidden = isOver(job) || forgotten;
    element("again").hidden = !job.prompt || (!isOver(job) && !forgotten);
    this.#showState();
    showStages(job);
    showFacts(job, this.#levels);
    if (job.state !== "done") return;
    const files = this.#showDownloads();
    if (!forgotten || files) this.#scene.show(this.#entry);
    if (!forgotten) {
      this.#showPicture("picture");
      this.#showPicture("cutout");
    }
  }

  #showState() {
    const entry = this.#entry;
    const { job } = entry;
    const elapsed = Math.max((Date.now() - entry.startedAt) / 1000, 0);
    const [tone, text] = longState(entry, elapsed);
    write(element("sentence"), text);
    element("sentence").dataset.tone = tone;
    // Every tenth of a second would be too much for a screen reader.
    element("sentence").setAttribute("aria-live", isOver(job) ? "polite" : "off");
    const failed = isOver(job) && job.state !== "done" && job.reason_code !== "caller_left";
    const help = failed && !entry.forgotten ? advice(job.reason_code) : "";
    element("advice").hidden = !help;
    write(element("advice"), help);
    if (isOver(job) && job.state !== "done") overlay(text);
    else if (!isOver(job)) overlay(runningLine(job), share(job));
  }

  async #showPicture(kind) {
    const figure = element(`${kind}-shown`);
    if (!figure.hidden || !(kind in this.#entry.job.files)) return;
    const { id } = this.#entry;
    const blob = await this.#entries.file(this.#entry, kind).catch(() => null);
    if (!blob || this.#entry?.id !== id || !figure.hidden) return;
    const url = URL.createObjectURL(blob);
    this.#urls.push(url);
    figure.querySelector("img").src = url;
    figure.hidden = false;
    element("pictures").hidden = false;
  }

  #showDownloads() {
    const box = element("downloads");
    const { job, forgotten } = this.#entry;
    // The job lists what the miner can make of it; not every 3D back end makes meshes.
    const kinds = Object.entries(forgotten ? {} : job.files)
      .filter(([kind]) => !SHOWN_AS_PICTURES.includes(kind))
      .map(([kind, address]) => [kind, address.split(".").pop()]);
    box.hidden = kinds.length === 0;
    if (box.childElementCount && !box.hidden) return true;
    box.replaceChildren(Object.assign(document.createElement("span"), { textContent: "Download" }));
    for (const [kind, ending] of kinds) {
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.kind = kind;
      button.textContent = `.${ending}`;
      button.addEventListener("click", () => this.#download(button, kind, ending));
      box.append(button);
    }
    return kinds.length > 0;
  }

  async #download(button, kind, ending) {
    const entry = this.#entry;
    const problem = element("download-problem");
    problem.hidden = true;
    button.disabled = true;
    button.textContent = MADE_ON_REQUEST.includes(kind) ? `making .${ending}` : `.${ending}`;
    try {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(await this.#entries.file(entry, kind));
      link.download = `${fileStem(entry.title)}.${ending}`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    } catch (error) {
      const help = advice(error.reasonCode, error.status, error.retryAfter);
      problem.textContent = `No .${ending}: ${error.message}. ${help}`;
      problem.hidden = false;
    } finally {
      button.disabled = false;
      button.textContent = `.${ending}`;
    }
  }
}

function runningLine(job) {
  if (job.state === "queued") return job.ahead ? `Waiting: ${job.ahead} before it` : "Waiting";
  if (job.state === "improving") return improvement(job);
  const stage = job.stages.find(({ state }) => state === "running");
  return stage ? stageName(stage.name) : "Running";
}

/** The share of the steps that are done, or of the candidates that are drawn. */
function share({ state, stages, candidates }) {
  if (state === "improving") return candidates.drawn / candidates.most;
  const all = stages.reduce((sum, { steps }) => sum + steps, 0);
  return all ? stages.reduce((sum, { done }) => sum + done, 0) / all : 0;
}

/** While a job runs, a bar shows the steps that are done; afterwards, the stage's share of the time. */
function showStages(job) {
  const { stages } = job;
  const total = stages.reduce((sum, { seconds: taken }) => sum + (taken ?? 0), 0);
  const list = element("stages");
  while (list.childElementCount > stages.length) list.lastElementChild.remove();
  while (list.childElementCount < stages.length) {
    const item = document.createElement("li");
    item.append(document.createElement("span"), document.createElement("progress"), document.createElement("span"));
    item.lastElementChild.className = "seconds";
    list.append(item);
  }
  stages.forEach(({ name, state, seconds: taken, done, steps }, index) => {
    const [label, bar, time] = list.children[index].children;
    list.children[index].dataset.state = state;
    list.children[index].dataset.stage = name;
    write(label, stageName(name));
    bar.setAttribute("aria-label", stageName(name));
    if (isOver(job)) bar.value = total ? (taken ?? 0) / total : 0;
    else if (state === "running" && steps <= 1) bar.removeAttribute("value");
    else bar.value = state === "done" ? 1 : steps ? done / steps : 0;
    write(time, taken === null ? "" : seconds(taken));
  });
}

function showFacts(job, levels) {
  const facts = [];
  const add = (name, value) => { if (value !== null && value !== undefined && value !== "") facts.push([name, value]); };
  if (job.state === "done") {
    add("Gaussians", job.gaussians === null ? null : count(job.gaussians));
    add("SPZ", job.bytes === null ? null : size(job.bytes));
    add("score", job.score === null ? null : scoreLine(job));
    add("first score", job.candidates?.made > 1 ? score(job.first_score) : null);
    add("candidates", job.candidates?.most > 1 ? candidateLine(job.candidates) : null);
    add("gate", gateLine(job));
    add("data checks", job.valid === null ? null : job.valid ? "passed" : "not passed: a validator would refuse it");
  }
  add("words understood", job.understood?.join(", "));
  add("words ignored", job.ignored?.join(", "));
  add("quality level", levelLine(job.rung, levels));
  add("seed", job.seed === null ? null : String(job.seed));
  element("facts").replaceChildren(...facts.map(([name, value]) => {
    const pair = document.createElement("div");
    for (const [tag, text] of [["dt", name], ["dd", value]]) {
      pair.append(Object.assign(document.createElement(tag), { textContent: text }));
    }
    return pair;
  }));
}

function scoreLine({ score: value, score_parts: parts, scorer }) {
  const shown = Object.entries(parts ?? {}).map(([name, part]) => `${name} ${score(part)}`);
  return [`${score(value)}${scorer ? ` by ${scorer}` : ""}`, ...shown].join(", ");
}

function candidateLine({ made, drawn, most }) {
  return made === drawn ? `${made} of at most ${most}` : `${made} of ${drawn} pictures, at most ${most}`;
}

function gateLine({ gated, gate_reason: reason }) {
  if (gated === null || gated === undefined) return null;
  return `${gated ? "a validator would get an empty result" : "passed"}: ${reason}`;
}

/** Writes only what differs: a screen reader repeats what is written. */
function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
