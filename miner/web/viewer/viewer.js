/* A turning Gaussian cloud in a page: Spark and three.js behind a few calls.

   const viewer = SplatViewer.create(container);
   viewer.label = "the object in 3D";
   await viewer.show(bytes);      // the subnet's SPZ (zstd), or any file that Spark reads
   viewer.turning = false; viewer.reset();

   The container gets a canvas of its own size. Clouds have +y up and the front towards +z, as the
   miner makes them. It draws only while something moves and the canvas can be seen. */

import { SparkRenderer, SplatFileType, SplatMesh } from "@sparkjsdev/spark";
import { gzipSync } from "fflate";
import { decompress } from "fzstd";
import { PerspectiveCamera, Scene, Spherical, Timer, Vector3, WebGLRenderer } from "three";
import { OrbitControls } from "three/addons/controls/OrbitControls.js";

const FIELD_OF_VIEW = 35;
const MARGIN = 0.85; // Of the box's sphere, which objects do not fill.
const START = new Spherical(1, 1.25, 0.55); // Slightly from above and from the right.
const TURN = 2.4; // OrbitControls' unit: 60 s / TURN for a full turn, here 25 s.
const STEP = Math.PI / 24;
const KEYS = "Arrow keys turn it, plus and minus zoom, space starts and stops the turning, Home resets the view.";
const ZSTD = [0x28, 0xb5, 0x2f, 0xfd];

/** Whether this browser offers WebGL 2. */
export function isSupported() {
  try {
    return Boolean(document.createElement("canvas").getContext("webgl2"));
  } catch {
    return false;
  }
}

/** Makes a viewer inside an element; throws where WebGL 2 is missing.
    It sends the element `turning` events when the turning starts or stops. */
export function create(container) {
  return new Viewer(container);
}

class Viewer {
  #container; #renderer; #spark; #camera; #controls;
  #scene = new Scene();
  #timer = new Timer();
  #mesh = null;
  #shown = 0;
  #appeared = null;
  #frame = 0;
  #visible = true;
  #busy = false;
  #distance = 3;

  constructor(container) {
    this.#container = container;
    this.#renderer = new WebGLRenderer({ antialias: false, alpha: true });
    this.#renderer.setClearColor(0x000000, 0);
    const canvas = this.#renderer.domElement;
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    container.append(canvas);
    this.#spark = new SparkRenderer({ renderer: this.#renderer, onDirty: () => this.#draw() });
    this.#spark.flushAfterRead = true;
    this.#scene.add(this.#spark);
    this.#camera = new PerspectiveCamera(FIELD_OF_VIEW, 1, 0.01, 100);
    this.#controls = this.#makeControls(canvas);
    new ResizeObserver(() => this.#resize()).observe(container);
    new IntersectionObserver(([entry]) => {
      this.#visible = entry.isIntersecting;
      this.#draw();
    }).observe(container);
    this.#resize();
  }

  #makeControls(canvas) {
    const controls = new OrbitControls(this.#camera, canvas);
    controls.enableDamping = true;
    controls.enablePan = false;
    controls.enableZoom = false; // Until the canvas is used: a page should scroll past it.
    controls.autoRotateSpeed = TURN;
    canvas.style.touchAction = "pan-y";
    controls.addEventListener("change", () => this.#draw());
    controls.addEventListener("start", () => {
      canvas.focus({ preventScroll: true });
      this.turning = false;
    });
    canvas.addEventListener("focus", () => { controls.enableZoom = true; });
    canvas.addEventListener("blur", () => { controls.enableZoom = false; });
    canvas.addEventListener("keydown", (event) => this.#onKey(event));
    return controls;
  }

  /** What a screen reader says of the canvas; the keys are added. */
  set label(text) {
    this.#renderer.domElement.setAttribute("aria-label", `${text}. ${KEYS}`);
  }

  /** Shows a file (Uint8Array) in place of the one before. Resolves once it can be seen, to its
      number of Gaussians; to null if another file was asked for meanwhile. */
  async show(bytes) {
    this.clear();
    const turn = this.#shown;
    const mesh = new SplatMesh(asFile(bytes));
    await mesh.initialized;
    if (turn !== this.#shown) {
      mesh.dispose();
      return null;
    }
    this.#mesh = mesh;
    this.#scene.add(mesh);
    this.#fit();
    this.reset();
    return new Promise((resolve) => { this.#appeared = resolve; });
  }

  /** Shows nothing. */
  clear() {
    this.#shown++;
    this.#appeared?.(null);
    this.#appeared = null;
    // Spark draws what was there until it has sorted what is there now. (A hidden canvas would not do:
    // a browser lets it run ahead of its GPU.)
    this.#spark.material.colorWrite = false;
    this.#draw();
    if (!this.#mesh) return;
    this.#scene.remove(this.#mesh);
    this.#mesh.dispose();
    this.#mesh = null;
  }

  /** Whether the cloud turns by itself. */
  get turning() { return this.#controls.autoRotate; }
  set turning(value) {
    if (this.#controls.autoRotate === value) return;
    this.#controls.autoRotate = value;
    this.#container.dispatchEvent(new CustomEvent("turning", { detail: value }));
    this.#draw();
  }

  /** Goes back to the first view. */
  reset() {
    this.#camera.position.setFromSpherical(START).multiplyScalar(this.#distance)
      .add(this.#controls.target);
    this.#controls.update();
    this.#draw();
  }

  /** The picture on the canvas as a data URL, scaled to a square; null while nothing is shown. */
  snapshot(side, type = "image/webp") {
    if (!this.#mesh || this.#appeared) return null;
    this.#renderer.render(this.#scene, this.#camera);
    const from = this.#renderer.domElement;
    const edge = Math.min(from.width, from.height);
    const to = Object.assign(document.createElement("canvas"), { width: side, height: side });
    to.getContext("2d").drawImage(
      from, (from.width - edge) / 2, (from.height - edge) / 2, edge, edge, 0, 0, side, side);
    return to.toDataURL(type, 0.8);
  }

  #fit() {
    const box = this.#mesh.getBoundingBox(true);
    const radius = Math.max(box.getSize(new Vector3()).length() / 2, 1e-6);
    box.getCenter(this.#controls.target);
    const half = Math.min(1, this.#camera.aspect) * Math.tan((FIELD_OF_VIEW * Math.PI) / 360);
    this.#distance = MARGIN * radius * Math.hypot(1, 1 / half);
    this.#controls.minDistance = radius * 0.5;
    this.#controls.maxDistance = this.#distance * 3;
    this.#camera.near = radius * 0.01;
    this.#camera.far = this.#distance * 4 + radius * 2;
    this.#camera.updateProjectionMatrix();
  }

  #onKey(event) {
    const turns = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const zooms = { "+": 0.9, "=": 0.9, "-": 1 / 0.9 };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in turns) this.#move(...turns[event.key], 1);
    else if (event.key in zooms) this.#move(0, 0, zooms[event.key]);
    else if (event.key === " ") this.turning = !this.turning;
    else if (event.key === "Home") this.reset();
    else return;
    event.preventDefault();
  }

  #move(right, down, zoom) {
    this.turning = false;
    const { target, minDistance, maxDistance } = this.#controls;
    const place = new Spherical().setFromVector3(this.#camera.position.clone().sub(target));
    place.theta += right * STEP;
    place.phi = Math.min(Math.max(place.phi + down * STEP, 0.01), Math.PI - 0.01);
    place.radius = Math.min(Math.max(place.radius * zoom, minDistance), maxDistance);
    this.#camera.position.setFromSpherical(place).add(target);
    this.#controls.update();
    this.#draw();
  }

  #resize() {
    const { clientWidth: width, clientHeight: height } = this.#container;
    if (!width || !height) return;
    this.#renderer.setPixelRatio(Math.min(window.devicePixelRatio, 2));
    this.#renderer.setSize(width, height);
    this.#camera.aspect = width / height;
    this.#camera.updateProjectionMatrix();
    this.#draw();
  }

  /** Ends the waiting of `show` when the mesh is among what Spark has sorted. */
  #lookForMesh() {
    if (!this.#spark.display.mapping.some(({ node }) => node === this.#mesh)) return;
    this.#spark.material.colorWrite = true;
    this.#appeared(this.#mesh.packedSplats.numSplats);
    this.#appeared = null;
    this.#draw();
  }

  #draw() {
    if (this.#frame || !this.#visible || this.#busy) return;
    this.#frame = requestAnimationFrame((now) => {
      this.#frame = 0;
      this.#timer.update(now);
      this.#busy = true; // OrbitControls reports the change that this makes.
      const moved = this.#controls.update(Math.min(this.#timer.getDelta(), 0.1));
      this.#busy = false;
      this.#renderer.render(this.#scene, this.#camera);
      if (this.#appeared) this.#lookForMesh();
      if (moved || this.#appeared || (this.turning && this.#mesh)) this.#draw();
    });
  }
}

/** The subnet's SPZ is Niantic's payload of version 2 in a zstd frame; Spark reads it in gzip. */
function asFile(bytes) {
  if (!ZSTD.every((value, index) => bytes[index] === value)) return { fileBytes: bytes };
  return { fileBytes: gzipSync(decompress(bytes), { level: 0 }), fileType: SplatFileType.SPZ };
}
