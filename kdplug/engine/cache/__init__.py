"""Cached teacher outputs, in memory or on disk."""
