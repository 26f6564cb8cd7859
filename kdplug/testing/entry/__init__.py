"""Tests that projections, schedulers, layer maps and teacher combiners must pass."""
