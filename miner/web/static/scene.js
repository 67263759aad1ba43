/* The viewer of the page: loads viewer.js when something is to be seen, and shows one entry. */

const element = (id) => document.getElementById(id);
const THUMB_SIDE = 96;

export class Scene {
  #entries;
  #viewer = null;
  #loading = null;
  #shown = null;

  constructor(entries) {
    this.#entries = entries;
    element("turn").addEventListener("click", () => { this.#viewer.turning = !this.#viewer.turning; });
    element("reset").addEventListener("click", () => this.#viewer.reset());
    element("canvas").addEventListener("turning", ({ detail }) =>
      element("turn").setAttribute("aria-pressed", String(detail)));
  }

  /** Shows the asset of a finished entry, unless it is shown already. */
  async show(entry) {
    if (this.#shown === entry.id) return;
    this.clear();
    this.#shown = entry.id;
    overlay("Loading the object");
    try {
      const [viewer, blob] = await Promise.all([this.#load(), this.#entries.file(entry, "spz")]);
      if (this.#shown !== entry.id) return;
      if (!viewer) {
        await this.#showPreview(entry);
        return;
      }
      const bytes = new Uint8Array(await blob.arrayBuffer());
      if (this.#shown !== entry.id || await viewer.show(bytes) === null) return;
      overlay(null);
      element("tools").hidden = false;
      viewer.turning = !matchMedia("(prefers-reduced-motion: reduce)").matches;
      this.#keepThumb(entry);
    } catch (error) {
      if (this.#shown !== entry.id) return;
      this.#shown = null;
      overlay(entry.forgotten ? "The miner no longer keeps this object." : `No object: ${error.message}.`);
    }
  }

  /** Shows nothing. */
  clear() {
    this.#shown = null;
    this.#viewer?.clear();
    element("tools").hidden = true;
    element("fallback").hidden = true;
  }

  #load() {
    this.#loading ??= new Promise((resolve, reject) => {
      const script = Object.assign(document.createElement("script"), { src: "/web/viewer.js" });
      script.onload = resolve;
      script.onerror = () => reject(new Error("the viewer could not be loaded"));
      document.head.append(script);
    }).then(() => {
      if (!SplatViewer.isSupported()) return null;
      this.#viewer = SplatViewer.create(element("canvas"));
      this.#viewer.label = "The object in 3D";
      return this.#viewer;
    }).catch((error) => {
      this.#loading = null;
      throw error;
    });
    return this.#loading;
  }

  async #showPreview(entry) {
    const blob = await this.#entries.file(entry, "preview");
    if (this.#shown !== entry.id) return;
    element("fallback").src = URL.createObjectURL(blob);
    element("fallback").hidden = false;
    overlay(null);
  }

  #keepThumb(entry) {
    if (entry.seen) return;
    const thumb = this.#viewer.snapshot(THUMB_SIDE);
    entry.seen = thumb !== null;
    this.#entries.keepThumb(entry, thumb);
  }
}

/** Puts words, and a bar for a share from 0 to 1, over the viewer; null takes them away. */
export function overlay(text, share = null) {
  element("overlay").hidden = text === null;
  element("examples").hidden = true;
  element("overlay-text").textContent = text ?? "";
  element("overlay-bar").hidden = share === null;
  if (share !== null) element("overlay-bar").value = share;
}
