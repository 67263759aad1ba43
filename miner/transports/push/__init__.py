"""Push: validators call this miner's axon."""
