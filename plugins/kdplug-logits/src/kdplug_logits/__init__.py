"""Losses between student and teacher logits as a kdplug plugin."""
