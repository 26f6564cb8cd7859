"""``python -m kdplug``: the ``kdplug`` command, also where the environment's scripts are not on the path."""

from __future__ import annotations

from kdplug.cli.app import main

if __name__ == "__main__":
    main()
