"""Checkpoints, exact resume and preemption."""
