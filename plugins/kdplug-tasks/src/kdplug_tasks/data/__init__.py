"""Reading of rows from files and with ``datasets``."""
