"""Every recipe by the name of its method."""

from __future__ import annotations

import self_taught_recipes
import text_recipes
import vision_recipes
import writing_recipes

RECIPES = {**vision_recipes.RECIPES, **text_recipes.RECIPES, **writing_recipes.RECIPES, **self_taught_recipes.RECIPES}
