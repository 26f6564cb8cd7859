"""Processes and sharded models."""
