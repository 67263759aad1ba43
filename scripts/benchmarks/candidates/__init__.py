"""What gate and candidates earn, in a simulation: `python -m scripts.benchmark candidates`."""

from scripts.benchmarks.candidates.running import run

__all__ = ["run"]
