"""``python -m kdplug``: the ``kdplug`` command, for environments whose scripts are not on ``PATH``."""

from __future__ import annotations

from kdplug.cli.app import main

if __name__ == "__main__":
    main()
