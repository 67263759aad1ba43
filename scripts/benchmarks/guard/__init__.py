"""The guard in a simulation: `python -m scripts.benchmark guard`."""

from scripts.benchmarks.guard.running import run

__all__ = ["run"]
