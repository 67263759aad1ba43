"""Whether a miner with given settings can start, serve and be reached: what the doctor asks."""
