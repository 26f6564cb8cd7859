"""Isolation of plugin code: its exceptions and changes of global state do not reach the run."""
