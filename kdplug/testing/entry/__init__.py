"""Laws for projections, schedulers, layer maps and teacher combiners."""
