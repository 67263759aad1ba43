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
      // 1: an engine died or hangs; start again. 2: cannot start. 3: deregistered. 0 is not listed: pm2
      // takes a process that was killed, for its memory say, for one that ended with 0.
      autorestart: true,
      stop_exit_codes: [2, 3],
      // The miner drains on SIGINT; above --drain.limit (45 s).
      kill_timeout: 60000,
      // Only the miner gets the signal; it ends its helpers itself.
      treekill: false,
      // miner.log holds the same lines and rotates itself; this file also has why a start failed.
      out_file: "/dev/null",
      error_file: path.join(root, "logs", "pm2-error.log"),
    },
  ],
};
