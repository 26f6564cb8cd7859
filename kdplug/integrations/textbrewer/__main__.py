"""Run an unmodified TextBrewer script: ``python -m kdplug.integrations.textbrewer script.py argument…``."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from kdplug.integrations.textbrewer.alias import install

_USAGE = "usage: python -m kdplug.integrations.textbrewer script.py [argument…]"


def main(arguments: list[str]) -> None:
    """Run the script ``arguments[0]`` with the remaining arguments, as Python would."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(
            f"{_USAGE}\n\nRun an unmodified TextBrewer script: `import textbrewer` imports kdplug.integrations.textbrewer."
        )
        return
    if not arguments or arguments[0].startswith("-"):
        unknown = f"unknown option {arguments[0]!r}\n" if arguments else ""
        sys.exit(f"{unknown}{_USAGE}")
    if not Path(arguments[0]).exists():
        sys.exit(f"error: there is no file {arguments[0]!r}\n{_USAGE}")
    install()
    sys.argv = arguments
    sys.path[0] = str(Path(arguments[0]).resolve().parent)
    runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
