"""Metrics for Prometheus, and the state of the miner for probes, on a port of their own."""

PREFIX = "splat_miner"
"""Begins the name of every series of the miner's own."""
