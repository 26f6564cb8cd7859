"""TextBrewer's presets as a kdplug plugin."""
