"""Laws for tasks."""
