/* The page of the miner: puts the parts together, asks for the miner's state, lists the history. */

import * as api from "./api.js";
import { Composer } from "./composer.js";
import { Details } from "./details.js";
import { Entries, thumbnail } from "./entries.js";
import { Scene } from "./scene.js";
import { advice, isOver, sentence, shortState, stateLine } from "./words.js";

const element = (id) => document.getElementById(id);
const READY_MS = 10_000;
const NOT_READY_MS = 2_000;

let chosen = null;
let asking = 0;

const entries = new Entries(onChange, lock);
const scene = new Scene(entries);
const details = new Details(entries, scene);
const composer = new Composer(async (wish, thumb) => {
  try {
    choose(await entries.start(wish, thumb));
  } catch (error) {
    if (error.status === 401) lock();
    throw error;
  }
});

function onChange(entry) {
  listHistory();
  if (entry && entry === chosen) details.update();
  if (entry?.job.state === "done" && !entry.thumb && "picture" in entry.job.files) {
    entries.file(entry, "picture").then(thumbnail).then((thumb) => {
      if (!entry.thumb) entries.keepThumb(entry, thumb);
    }, () => {});
  }
}

function choose(entry) {
  chosen = entry;
  details.choose(entry);
  listHistory();
}

function listHistory() {
  const list = element("history");
  element("past").hidden = entries.all.length === 0;
  const items = new Map([...list.children].map((item) => [item.dataset.id, item]));
  entries.all.forEach((entry, index) => {
    const item = items.get(entry.id) ?? newItem(entry);
    items.delete(entry.id);
    if (list.children[index] !== item) list.insertBefore(item, list.children[index] ?? null);
    const [tone, words] = shortState(entry);
    const what = item.querySelector(".what");
    what.dataset.tone = tone;
    what.textContent = `${new Date(entry.startedAt).toLocaleTimeString([], { timeStyle: "short" })} · ${words}`;
    const thumb = item.querySelector(".thumb");
    if (entry.thumb && thumb.src !== entry.thumb) thumb.src = entry.thumb;
    thumb.hidden = false;
    item.querySelector(".cancel").hidden = isOver(entry.job) || entry.forgotten;
    if (entry === chosen) item.setAttribute("aria-current", "true");
    else item.removeAttribute("aria-current");
  });
  for (const item of items.values()) item.remove();
}

const NO_PICTURE = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==";

function newItem(entry) {
  const item = document.createElement("li");
  item.dataset.id = entry.id;
  item.innerHTML = '<button type="button" class="pick"><img class="thumb" alt=""><span class="name"></span>'
    + '<span class="what"></span></button><button type="button" class="plain cancel">Cancel</button>';
  item.querySelector(".name").textContent = entry.title;
  item.querySelector(".thumb").src = NO_PICTURE;
  item.querySelector(".pick").addEventListener("click", () => choose(entry));
  const cancel = item.querySelector(".cancel");
  cancel.setAttribute("aria-label", `Cancel ${entry.title}`);
  cancel.addEventListener("click", () => cancelEntry(entry));
  return item;
}

async function cancelEntry(entry) {
  try {
    await entries.cancel(entry);
  } catch (error) {
    if (error.status === 401) lock();
    else if (error.status !== 404) composer.refuse(error);
  }
}

function lock() {
  if (element("unlock").hidden) {
    element("unlock").hidden = false;
    element("key").focus();
  }
}

element("unlock").addEventListener("submit", async (event) => {
  event.preventDefault();
  api.setKey(element("key").value.trim());
  element("key").value = "";
  element("unlock").hidden = true;
  composer.refuse(null);
  await askState();
  entries.resume();
});
element("cancel").addEventListener("click", () => cancelEntry(chosen));
element("again").addEventListener("click", () =>
  composer.fill({ prompt: chosen.job.prompt, seed: chosen.job.seed }));
element("forget-all").addEventListener("click", () => {
  entries.clear();
  if (chosen && !entries.get(chosen.id)) choose(null);
});

async function askState() {
  clearTimeout(asking);
  let wait = NOT_READY_MS;
  try {
    const status = await api.status();
    showState(...stateLine(status.state));
    element("machine").textContent = `preset ${status.preset}, at most ${Math.round(status.budget_s)} s each`
      + (status.active ? `, ${status.active} running` : "");
    composer.offer(status.candidates);
    details.know(status.rungs);
    element("knows").hidden = !status.knows;
    element("knows").textContent = status.knows ? `This preset knows only ${status.knows}.` : "";
    if (status.state === "ready") wait = READY_MS;
  } catch (error) {
    if (error.status === 401) {
      showState("waiting", "Needs a key");
      lock();
    } else {
      showState("down", "No answer");
      element("machine").textContent = `${sentence(error.message)} ${advice(null, error.status)}`;
    }
  }
  asking = setTimeout(askState, wait);
}

function showState(tone, words) {
  const state = element("state");
  state.dataset.state = tone;
  if (state.textContent !== words) state.textContent = words;
}

listHistory();
if (entries.all.length) choose(entries.all[0]);
askState();
entries.resume();
