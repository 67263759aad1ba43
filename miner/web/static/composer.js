/* The form: a prompt or a picture, a seed, and how many candidates. */

import { advice, sentence } from "./words.js";
import { ApiError } from "./api.js";
import { thumbnail } from "./entries.js";

const element = (id) => document.getElementById(id);
const TYPES = ["image/png", "image/jpeg", "image/webp"];
const PICTURE_LIMIT = 6 * 2 ** 20;
const SEED_LIMIT = 2 ** 32 - 1;

export class Composer {
  #picture = null;
  #start;

  /** `start(wish, thumb)` starts a job, and throws an error whose message is shown. */
  constructor(start) {
    this.#start = start;
    element("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    element("prompt").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.submit();
    });
    for (const button of document.querySelectorAll("#examples button")) {
      button.addEventListener("click", () => this.fill({ prompt: button.textContent }));
    }
    this.#listenForPictures();
  }

  #listenForPictures() {
    const picture = element("picture");
    picture.addEventListener("change", () => {
      this.#take(picture.files);
      picture.value = "";
    });
    element("chosen").querySelector("button").addEventListener("click", () => this.#choose(null));
    document.addEventListener("paste", (event) => {
      if (event.clipboardData.files.length) this.#take(event.clipboardData.files);
    });
    const drop = element("drop");
    document.addEventListener("dragover", (event) => {
      if (!event.dataTransfer.types.includes("Files")) return;
      event.preventDefault();
      drop.classList.add("over");
    });
    document.addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) drop.classList.remove("over");
    });
    document.addEventListener("drop", (event) => {
      drop.classList.remove("over");
      if (!event.dataTransfer.files.length) return;
      event.preventDefault();
      this.#take(event.dataTransfer.files);
    });
  }

  /** Puts a prompt and a seed into the form, and the cursor behind them. */
  fill({ prompt, seed = null }) {
    this.#choose(null);
    element("prompt").value = prompt ?? "";
    element("seed").value = seed ?? "";
    this.refuse(null);
    element("prompt").focus();
  }

  /** Offers a choice of candidates, unless the miner draws one at most. */
  offer(most) {
    element("choice").hidden = most <= 1;
    element("most").value = String(most);
  }

  /** Shows why a request was refused and what to do; null takes it away. */
  refuse(error) {
    const refusal = element("refusal");
    refusal.hidden = error === null;
    if (error === null) return;
    const help = error instanceof ApiError ? advice(error.reasonCode, error.status, error.retryAfter) : "";
    refusal.textContent = `${sentence(error.message)} ${help}`.trim();
  }

  async submit() {
    const prompt = element("prompt").value.trim();
    const digits = element("seed").value.trim();
    const seed = digits ? Number(digits) : null;
    if (!this.#picture && !prompt) {
      this.refuse(new Error("Write what the object should be, or choose a picture."));
      element("prompt").focus();
      return;
    }
    if (seed !== null && !(/^\d+$/.test(digits) && seed <= SEED_LIMIT)) {
      this.refuse(new Error(`The seed ${digits} is not a whole number from 0 to ${SEED_LIMIT}: change it, or leave it empty.`));
      element("seed").focus();
      return;
    }
    this.refuse(null);
    const button = element("composer").querySelector("[type=submit]");
    button.disabled = true;
    try {
      const picture = this.#picture;
      const chosen = element("choice").hidden || picture ? "" : element("candidates").value;
      const candidates = chosen ? Number(chosen) : null;
      await this.#start({ prompt, picture, seed, candidates }, picture && await thumbnail(picture));
    } catch (error) {
      this.refuse(error);
    } finally {
      button.disabled = false;
    }
  }

  #take(files) {
    const [file] = files;
    if (!file) return;
    if (!TYPES.includes(file.type)) {
      this.refuse(new Error(`${file.name || "This"} is not a PNG, JPEG or WebP picture: choose one of these.`));
      return;
    }
    if (file.size > PICTURE_LIMIT) {
      const mib = (file.size / 2 ** 20).toFixed(1);
      this.refuse(new Error(`${file.name} has ${mib} MiB; the limit is 6 MiB: choose a smaller one.`));
      return;
    }
    this.refuse(null);
    this.#choose(file);
  }

  #choose(file) {
    const image = element("chosen").querySelector("img");
    if (image.src) URL.revokeObjectURL(image.src);
    this.#picture = file;
    element("prompt").disabled = file !== null;
    element("candidates").disabled = file !== null; // A given picture has no other candidates.
    element("chosen").hidden = file === null;
    element("drop").classList.toggle("filled", file !== null);
    if (file === null) {
      image.removeAttribute("src");
      return;
    }
    image.src = URL.createObjectURL(file);
    element("chosen").querySelector("span").textContent = file.name || "pasted picture";
  }
}
