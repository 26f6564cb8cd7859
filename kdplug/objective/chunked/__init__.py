"""Losses on large vocabularies, computed in chunks of items."""
