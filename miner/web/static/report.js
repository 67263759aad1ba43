/* The viewer in the report of a trial, which is opened as a file: plain scripts only, no fetch.

   An asset is a script that calls showAsset(its own name, base64 of the SPZ). */

(() => {
  const waiting = new Map();
  const canvas = Object.assign(document.createElement("div"), { className: "canvas" });
  let viewer = null;
  let turning = null;

  window.showAsset = (name, base64) => {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    waiting.get(name)(bytes);
  };

  const load = (src) => new Promise((resolve, reject) => {
    const script = Object.assign(document.createElement("script"), { src });
    script.onload = resolve;
    script.onerror = () => reject(new Error(`${src} cannot be read`));
    document.head.append(script);
  });

  const asset = (name) => new Promise((resolve, reject) => {
    waiting.set(name, resolve);
    load(name).catch(reject);
  });

  function stop() {
    if (!turning) return;
    turning.classList.remove("turns");
    turning.querySelector("button").textContent = "Turn in 3D";
    turning = null;
    viewer?.clear();
  }

  async function start(view) {
    stop();
    turning = view;
    const button = view.querySelector("button");
    button.textContent = "Loading";
    try {
      if (!window.SplatViewer) await load("viewer/viewer.js");
      const bytes = await asset(view.dataset.splat);
      if (turning !== view) return;
      if (!SplatViewer.isSupported()) throw new Error("this browser offers no WebGL 2");
      view.insertBefore(canvas, button); // One viewer, which moves from asset to asset.
      view.classList.add("turns");
      viewer ??= SplatViewer.create(canvas);
      viewer.label = `${view.querySelector("img").alt}, in 3D`;
      if (await viewer.show(bytes) === null) return;
      viewer.turning = !matchMedia("(prefers-reduced-motion: reduce)").matches;
      button.textContent = "Four views";
    } catch (error) {
      if (turning !== view) return;
      stop();
      button.textContent = `No 3D: ${error.message}`;
    }
  }

  const views = document.querySelectorAll("[data-splat]");
  for (const view of views) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: "Turn in 3D" });
    button.addEventListener("click", () => (turning === view ? stop() : start(view)));
    view.append(button);
  }
  if (views.length) start(views[0]);
})();
