// pm2 start deploy/pm2/ecosystem.config.js
// The settings are in miner.yaml at the root of the repository (miner.example.yaml shows them).
const path = require("node:path");

const root = path.resolve(__dirname, "..", "..");

module.exports = {
  apps: [
    {
      name: "splat-miner",
      cwd: root,
      script: path.join(root, ".venv", "bin", "splat-miner"),
      args: ["run", "--config", "miner.yaml"],
      interpreter: "none",
      // 0: asked to stop. 1: an engine died or hangs; start again. 2: cannot start. 3: deregistered.
      autorestart: true,
      stop_exit_codes: [0, 2, 3],
      exp_backoff_restart_delay: 1000,
      // The miner drains on SIGINT; above --drain.limit (45 s).
      kill_timeout: 60000,
      // Only the miner gets the signal; it ends its helpers itself.
      treekill: false,
      // It keeps and rotates miner.log and score.jsonl itself; these two only grow with its warnings.
      out_file: "/dev/null",
      error_file: path.join(root, "logs", "pm2-error.log"),
    },
  ],
};
