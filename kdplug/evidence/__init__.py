"""Predictions for each test example, the statistics computed from them, and the verdict on two methods."""
