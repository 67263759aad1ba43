"""Prompt to picture, and picture to cut-out."""
