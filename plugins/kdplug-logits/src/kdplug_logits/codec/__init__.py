"""Codecs that compress the teacher's logits in a cache."""
