"""Refinement: a finished cloud follows the one picture that shows its front."""

from generation.lift.refine.refinement import Refinement

__all__ = ["Refinement"]
