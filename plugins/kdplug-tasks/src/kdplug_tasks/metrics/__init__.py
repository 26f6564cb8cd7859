"""Figures that need more than a comparison of numbers."""
