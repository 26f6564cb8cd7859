"""Teacher and student as transformers models."""
