"""Features captured by module path with forward hooks."""
