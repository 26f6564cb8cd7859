"""Load, build, initialize and save teacher and student as transformers models."""
