"""Run a recipe: train a teacher, distil it, compare with the same student without distillation."""
