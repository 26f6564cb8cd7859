"""Read rows from files, or with ``datasets``."""
