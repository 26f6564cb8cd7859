"""The ``kdplug`` command line. Its modules import torch and pydantic only inside the commands that need them."""
