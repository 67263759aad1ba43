"""Pull: this miner asks validators for tasks and submits the results."""
