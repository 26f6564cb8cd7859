"""Targets of a head: reading, loss and metrics."""
