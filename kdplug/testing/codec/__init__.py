"""Laws for cache codecs."""
