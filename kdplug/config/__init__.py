"""Parse and validate configs: distillation, training and recipe. No module here imports torch."""
