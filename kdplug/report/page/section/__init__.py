"""The sections of a page as data for its template."""
