"""Timings that an operator can repeat; each module has one `run`."""
