"""Recipes: read, override, find, check and write them."""

from xrlhf.config.check import check_recipe
from xrlhf.config.copying import copy_recipe
from xrlhf.config.dump import dump_recipe, recipe_text
from xrlhf.config.recipe import load_recipe
from xrlhf.config.resolve import find_component, resolve
from xrlhf.config.secrets import mask_secrets
from xrlhf.config.shipped import find_recipe, list_recipes, recipe_summary, shipped_dir

__all__ = [
    "check_recipe",
    "copy_recipe",
    "dump_recipe",
    "find_component",
    "find_recipe",
    "list_recipes",
    "load_recipe",
    "mask_secrets",
    "recipe_summary",
    "recipe_text",
    "resolve",
    "shipped_dir",
]
