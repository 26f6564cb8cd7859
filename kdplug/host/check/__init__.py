"""Checks of ``kdplug plugins check``."""
