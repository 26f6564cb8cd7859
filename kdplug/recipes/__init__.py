"""Run a recipe: train the teacher if necessary, distil it, and compare with the same student without distillation."""
