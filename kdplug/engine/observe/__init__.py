"""RunObserver, progress bars, loss logs and experiment trackers."""
