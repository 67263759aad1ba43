"""Weights: sources, the folder on disk, the download."""
