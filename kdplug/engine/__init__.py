"""Train one run on accelerate, from built objects. Nothing here resolves names."""
