"""Reports on a run: tables, curves, records."""
