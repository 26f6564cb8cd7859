"""The page ``report.html``: reads the files of a run and draws them, without a browser library or a network."""
