"""JSON Schema of recipes and configs."""
