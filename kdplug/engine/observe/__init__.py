"""Observe a training run: progress bars, loss logs, experiment trackers, and the RunObserver interface."""
