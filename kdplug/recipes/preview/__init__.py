"""``kdplug plan``: a recipe's terms, shapes, memory and warnings without training."""
