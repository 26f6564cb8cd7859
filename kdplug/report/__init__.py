"""Present the results of a run: report.html, tables, curves, and the record that identifies the run."""
