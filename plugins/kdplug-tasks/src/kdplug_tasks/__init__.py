"""Tasks for kdplug recipes."""
