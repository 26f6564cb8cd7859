"""Write ``report.html`` from the files of a run; the page contains no scripts and needs no network."""
