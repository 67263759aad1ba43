"""Tools for people; what they compute lives on a floor below."""

from miner.interpreter import require_environment

require_environment()
