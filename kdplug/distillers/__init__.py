"""The distillers: each combines a teacher, a student and a config, and trains."""
