/* What this browser has asked for: the entries of the history, and the following of their jobs.

   An entry: {id, title, job, startedAt (ms), thumb (data URL or null), forgotten}. The list is kept in
   localStorage, so it survives a reload; files are kept in memory only. */

import * as api from "./api.js";
import { isOver } from "./words.js";

const PLACE = "splat-miner.history";
const LIMIT = 40;
const RETRY_MS = 2000;

export class Entries {
  #entries = [];
  #files = new Map();
  #onChange;
  #onLocked;

  /** Calls `onChange(entry)` after every change of one, `onLocked()` when a key is asked for. */
  constructor(onChange, onLocked) {
    this.#onChange = onChange;
    this.#onLocked = onLocked;
    try {
      const stored = JSON.parse(localStorage.getItem(PLACE) ?? "[]");
      if (Array.isArray(stored)) this.#entries = stored.filter(isEntry);
    } catch { /* No JSON. */ }
  }

  /** Newest first. */
  get all() { return this.#entries; }

  get(id) { return this.#entries.find((entry) => entry.id === id) ?? null; }

  /** Starts a job and follows it; throws `ApiError` if it is refused. */
  async start(wish, thumb) {
    const job = await api.start(wish);
    const title = wish.picture ? wish.picture.name || "a picture" : wish.prompt;
    const entry = { id: job.id, title, job, startedAt: Date.now(), thumb, forgotten: false };
    this.#entries.unshift(entry);
    for (const old of this.#entries.splice(LIMIT)) this.#files.delete(old.id);
    this.#changed(entry);
    this.#follow(entry);
    return entry;
  }

  /** Asks the miner what became of the entries of an earlier load, and follows those that run. */
  async resume() {
    for (const entry of [...this.#entries]) {
      if (entry.forgotten) continue;
      if (!isOver(entry.job)) this.#follow(entry);
      else if (entry.job.state === "done") await this.#ask(entry);
    }
  }

  async cancel(entry) {
    await api.cancel(entry.id);
  }

  /** Forgets the entries whose jobs are over. */
  clear() {
    for (const entry of this.#entries.filter(({ job }) => isOver(job))) this.#files.delete(entry.id);
    this.#entries = this.#entries.filter((entry) => !isOver(entry.job) && !entry.forgotten);
    this.#changed(null);
  }

  keepThumb(entry, thumb) {
    if (!thumb || entry.thumb === thumb) return;
    entry.thumb = thumb;
    this.#changed(entry);
  }

  /** The blob of a finished entry's file of a kind ("spz", "picture", ...), fetched once. */
  file(entry, kind) {
    const files = this.#files.get(entry.id) ?? this.#files.set(entry.id, {}).get(entry.id);
    files[kind] ??= api.file(entry.job.files[kind]).catch((error) => {
      delete files[kind];
      if (error.status === 404) this.#update(entry, { forgotten: true });
      if (error.status === 401) this.#onLocked();
      throw error;
    });
    return files[kind];
  }

  async #ask(entry) {
    try {
      this.#update(entry, { job: await api.job(entry.id) });
    } catch (error) {
      if (error.status === 404) this.#update(entry, { forgotten: true });
    }
  }

  async #follow(entry) {
    while (!isOver(entry.job) && !entry.forgotten && this.get(entry.id)) {
      try {
        await api.follow(entry.id, (job) => this.#update(entry, { job }));
      } catch (error) {
        if (error.status === 404) this.#update(entry, { forgotten: true });
        if (error.status === 401) this.#onLocked();
      }
      // A stream that ends early: the miner restarts, or a proxy cut it.
      if (!isOver(entry.job)) await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }

  #update(entry, values) {
    Object.assign(entry, values);
    this.#changed(entry);
  }

  #changed(entry) {
    try {
      localStorage.setItem(PLACE, JSON.stringify(this.#entries));
    } catch { /* Full, or not allowed: the list lives until the reload. */ }
    this.#onChange(entry);
  }
}

/** Whether a stored value is an entry as this version of the page, and of the API, has it. */
function isEntry(value) {
  const job = value?.job;
  const isFigure = (figure) => figure === null || typeof figure === "number";
  return typeof value?.id === "string" && typeof value.title === "string"
    && typeof value.startedAt === "number" && typeof job?.state === "string"
    && typeof job.elapsed_s === "number" && typeof job.files === "object" && job.files !== null
    && [job.predicted_s, job.seed, job.gaussians, job.bytes, job.score].every(isFigure)
    && Array.isArray(job.stages)
    && job.stages.every((stage) => typeof stage?.name === "string" && isFigure(stage.seconds));
}

/** A small square picture of a blob, as a data URL; null if the browser cannot read it. */
export async function thumbnail(blob, side = 96) {
  try {
    const bitmap = await createImageBitmap(blob);
    const edge = Math.min(bitmap.width, bitmap.height);
    const canvas = Object.assign(document.createElement("canvas"), { width: side, height: side });
    canvas.getContext("2d").drawImage(
      bitmap, (bitmap.width - edge) / 2, (bitmap.height - edge) / 2, edge, edge, 0, 0, side, side);
    return canvas.toDataURL("image/webp", 0.8);
  } catch {
    return null;
  }
}
