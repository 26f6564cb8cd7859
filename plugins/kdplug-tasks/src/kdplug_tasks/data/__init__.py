"""Rows from files and from ``datasets``."""
