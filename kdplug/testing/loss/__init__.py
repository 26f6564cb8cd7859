"""Tests that every loss must pass."""
