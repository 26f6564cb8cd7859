"""Laws for losses."""
