"""Tests that every cache codec must pass."""
