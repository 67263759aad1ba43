"""Draws the world that all trainings share."""

import torch

from scripts.train_embedded.bank import Bank
from scripts.train_embedded.recipe import Places, Recipe

SEED = 17


def draw_world(recipe: Recipe, places: Places, device: torch.device) -> None:
    """Draws the bank, unless an earlier run did."""
    if not places.bank.is_file():
        radius = recipe.triposr.radius
        size = 2 * recipe.image_size
        bank = Bank.draw(recipe.views, size, recipe.points, radius, seed=SEED, device=device)
        bank.save(places.bank)
