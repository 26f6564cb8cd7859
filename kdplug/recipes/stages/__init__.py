"""Stages of a recipe: build, train and resume the student of each."""
