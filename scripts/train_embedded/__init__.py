"""Trains the networks of the preset `embedded` on a world of coloured objects made of formulas."""
