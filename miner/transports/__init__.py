"""The ways a request reaches the miner; each turns bytes and a caller into a `Request`."""
