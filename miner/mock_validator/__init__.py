"""Trials of a miner: tasks for it, and checks of its answers."""
