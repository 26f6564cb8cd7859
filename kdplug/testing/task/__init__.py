"""Tests that every task of a recipe must pass."""
