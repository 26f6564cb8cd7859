"""Command line. Modules here import torch and pydantic only inside the commands that need them."""
