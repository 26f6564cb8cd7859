"""Run a recipe: fit a teacher, distil it, compare with the same student without distillation."""
