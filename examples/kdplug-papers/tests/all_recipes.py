"""Every recipe by the name of its method."""

from __future__ import annotations

import vision_recipes

RECIPES = {**vision_recipes.RECIPES}
