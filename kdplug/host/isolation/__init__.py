"""Plugin code runs apart: what it raises or changes does not reach the run."""
