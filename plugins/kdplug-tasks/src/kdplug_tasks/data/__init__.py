"""Read rows from files, or with the ``datasets`` library."""
