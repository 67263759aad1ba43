/* The page's sentences. */

const STAGES = {
  prompt: "Read the prompt",
  denoise: "Paint the picture",
  decode: "Develop the picture",
  cutout: "Cut the object out",
  lift: "Lift to 3D",
  prepare: "Prepare the cut-out",
  features: "Look at the object",
  flow: "Shape it in 3D",
  dream: "Shape it in 3D",
  gaussians: "Make the Gaussians",
  splats: "Place the Gaussians",
  refine: "Refine the Gaussians",
  encode: "Pack the file",
  mesh: "Build the mesh",
  score: "Score the object",
};

const STATES = {
  starting: ["waiting", "Starting"],
  warming_up: ["waiting", "Warming up"],
  ready: ["ready", "Ready"],
  suspect: ["waiting", "No engine can be used"],
  draining: ["down", "Shutting down"],
  dead: ["down", "Stopped"],
};

const LATE = "The machine is too busy or too slow for its time limit. Try again when fewer requests run.";
const ADVICE = {
  predicted_late: LATE,
  predicted_late_stage: LATE,
  deadline_passed: LATE,
  caller_share: "Wait until another of your requests is done, then try again.",
  not_ready: "The models are still loading. Try again when the line at the top says Ready.",
  draining: "The miner shuts down. Try again after its restart.",
  engine_suspect: "The miner waits for a stage that takes too long. Try again when it says Ready.",
  engine_lost: "The miner lost a process while it worked on this. Try again.",
  engine_dead: "The miner has lost its device and restarts. Try again in a minute.",
  bad_task: "Change the prompt, the picture or the seed, then try again.",
  unknown_words: "Describe the object with words that the networks know.",
  below_threshold: "Try another seed, or allow more candidates.",
  generation_error: "Try again. If it happens again, the miner's log has the cause.",
  internal_error: "Try again. If it happens again, the miner's log has the cause.",
};
const STATUS_ADVICE = {
  0: "Check that it runs and that this computer reaches it; the page tries again by itself.",
  401: "Enter the key below.",
  408: "Check the connection, then try again.",
  413: "Choose a picture of at most 6 MiB.",
  422: "Change the prompt, the picture or the seed, then try again.",
};

export const stageName = (name) => STAGES[name] ?? name.replaceAll("_", " ");

/** [tone, words] of the miner's state. */
export const stateLine = (state) => STATES[state] ?? ["waiting", sentence(state)];

/** What to do about a job that has no result, or about a refused call. */
export function advice(reasonCode, status = null, retryAfter = null) {
  const text = ADVICE[reasonCode] ?? STATUS_ADVICE[status] ?? "";
  return retryAfter ? `${text} The miner suggests to wait ${retryAfter} s.`.trim() : text;
}

/** A message of the miner as a sentence. */
export function sentence(text) {
  const words = text.trim().replaceAll("_", " ");
  if (!words) return "";
  return words[0].toUpperCase() + words.slice(1) + (/[.!?]$/.test(words) ? "" : ".");
}

export const seconds = (value) => `${value.toFixed(value < 10 ? 2 : 1)} s`;
export const count = (value) => value.toLocaleString("en");
export const size = (bytes) =>
  bytes < 1e6 ? `${Math.round(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;

/** A quality level by its name, with its numbers where the miner tells them. */
export function levelLine(name, levels) {
  const words = name?.replaceAll("_", " ");
  const level = levels.find((each) => each.name === name);
  if (!level) return words;
  const lift = level.lift_steps ? `, ${level.lift_steps} steps in 3D` : "";
  return `${words}: ${level.steps} steps of a ${level.size} px picture${lift}, at most ${count(level.gaussians)} Gaussians`;
}

export const score = (value) => value.toFixed(2);

export const isOver = (job) => !["queued", "running", "improving"].includes(job.state);

/** What a job with an object is waiting for. */
export const improvement = ({ candidates, score: best }) =>
  `Candidate ${candidates.drawn} of ${candidates.most}, best ${score(best)}`;

/** The state of a job for the list: [tone, words]. */
export function shortState(entry) {
  const { job } = entry;
  if (job.state === "done") {
    const time = seconds(job.elapsed_s);
    return entry.forgotten ? ["", `${time}, no longer kept by the miner`] : ["good", time];
  }
  if (entry.forgotten) return ["", "no longer kept by the miner"];
  if (job.state === "queued") return ["", job.ahead ? `waits, ${job.ahead} before it` : "waits"];
  if (job.state === "running") return ["", "running"];
  if (job.state === "improving") return ["", improvement(job).toLowerCase()];
  if (job.reason_code === "caller_left") return ["", "cancelled"];
  return ["bad", job.state];
}

/** One sentence about a job, `elapsed` seconds after its start: [tone, words]. */
export function longState(entry, elapsed) {
  const { job } = entry;
  if (entry.forgotten) {
    const old = "The miner no longer keeps this job: it has restarted, or newer jobs took its place.";
    return ["", old];
  }
  const expected = job.predicted_s === null ? "" : `, about ${seconds(job.predicted_s)} expected`;
  const passed = `${elapsed.toFixed(1)} s so far${expected}.`;
  if (job.state === "queued") {
    const one = job.ahead === 1;
    const before = job.ahead ? `${job.ahead} request${one ? " goes" : "s go"} before it` : "It is next";
    return ["", `Waiting. ${before}; ${passed}`];
  }
  if (job.state === "running") return ["", `Running: ${passed}`];
  if (job.state === "improving") return ["", `${improvement(job)}. ${elapsed.toFixed(1)} s so far.`];
  if (job.state === "done") return ["good", `Done in ${seconds(job.elapsed_s)}.${verdict(job)}`];
  if (job.reason_code === "caller_left") return ["", "Cancelled."];
  return ["bad", `${sentence(job.state)} ${sentence(job.message ?? "")}`.trim()];
}

/** What a done job's score says, as further sentences; nothing without a score. */
function verdict({ score: value, candidates, gated }) {
  if (value === null || value === undefined) return "";
  const best = candidates?.made > 1 ? `, the best of ${candidates.made}` : "";
  return ` Score ${score(value)}${best}${gated ? ", too low for a validator" : ""}.`;
}

/** A file name from a title: `a-red-car`. */
export const fileStem = (title) =>
  title.toLowerCase().replace(/\.\w+$/, "").replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 48)
  || "object";
