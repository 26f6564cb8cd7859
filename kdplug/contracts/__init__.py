"""Protocols and types that plugins use and implement. Nothing here imports the rest of kdplug, except its errors."""
