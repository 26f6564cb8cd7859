"""Cache codecs."""
