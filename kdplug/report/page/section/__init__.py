"""Compute the data of each section of ``report.html`` for its template."""
