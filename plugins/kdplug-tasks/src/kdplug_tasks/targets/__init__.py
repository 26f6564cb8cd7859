"""Targets of a classification or regression head: how they are read, their loss and their metrics."""
