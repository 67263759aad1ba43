"""The doors: one short file per program."""

from miner.interpreter import require_environment

require_environment()
