"""Losses between feature maps, pooled features and image tokens as a kdplug plugin."""
