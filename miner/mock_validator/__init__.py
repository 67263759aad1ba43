"""Trying a miner: tasks to send, and a judgement of what comes back."""
