"""One run on accelerate: built objects in, a trained student out. Nothing here resolves a name."""
