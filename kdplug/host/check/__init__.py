"""``kdplug plugins check``: problems with installed plugins."""
