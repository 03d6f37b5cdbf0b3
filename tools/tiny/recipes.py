"""The recipes by name, and the one of a checkpoint."""

import json
from pathlib import Path

from tools.tiny.llada import LLaDARecipe
from tools.tiny.llada2 import LLaDA2Recipe, LongLLaDA2Recipe
from tools.tiny.recipe import Recipe

RECIPES: dict[str, Recipe] = {
    "llada2": LLaDA2Recipe(),
    "llada": LLaDARecipe(),
    "llada2-long": LongLLaDA2Recipe(),
}


def recipe_of(folder: Path) -> Recipe:
    """The recipe whose architecture config.json names."""
    architectures = json.loads((folder / "config.json").read_text())["architectures"]
    for recipe in RECIPES.values():
        if recipe.config["architectures"] == architectures:
            return recipe
    raise ValueError(f"{folder}: no recipe for {architectures}")
